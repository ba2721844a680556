package api

import (
	"context"
	"fmt"
	"io"
	"net/url"

	"wherry.dev/spec"
)

// VolumeInfo is a volume as people see it.
type VolumeInfo struct {
	ID spec.VolumeID `json:"id"`
	// Name in the whole cluster.
	Name string `json:"name"`
	// Stack that declared it; empty for one that was made by hand.
	Stack string `json:"stack"`
	// Nodes are the names of its homes.
	Nodes     []string `json:"nodes"`
	Anonymous bool     `json:"anonymous,omitempty"`
	// Services that mount it, "stack/service", sorted. InUse: a task has it.
	Services []string `json:"services"`
	InUse    bool     `json:"in_use"`
	Removing bool     `json:"removing,omitempty"`
	// Shared: the data is on no node.
	Shared  bool              `json:"shared,omitempty"`
	Options map[string]string `json:"options,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Move that is under way.
	Move *VolumeMove `json:"move,omitempty"`
	// Instances, one per home, when their size was asked for.
	Instances []VolumeInstance `json:"instances,omitempty"`
}

// VolumeMove is a move that is under way.
type VolumeMove struct {
	To      string `json:"to"` // name of the node
	Problem string `json:"problem,omitempty"`
}

// VolumeInstance is what a volume takes on one of its homes.
type VolumeInstance struct {
	Node  string `json:"node"`
	Bytes int64  `json:"bytes"` // on its disk
	Files int64  `json:"files"` // and folders
	// Problem is why that is not known.
	Problem string `json:"problem,omitempty"`
}

// VolumeSize is the answer of "node.volume.size".
type VolumeSize struct {
	Bytes int64 `json:"bytes"`
	Files int64 `json:"files"`
}

// CreateVolume is the body of "volume.create".
type CreateVolume struct {
	Name string          `json:"name"`
	Spec spec.VolumeSpec `json:"spec"`
	// Node that is to hold the data; empty leaves that to the first user.
	Node      string `json:"node,omitempty"`
	Author    string `json:"author,omitempty"`
	RequestID string `json:"request_id,omitempty"`
}

// MoveVolume is the body of "volume.move".
type MoveVolume struct {
	Node string `json:"node"` // name or ID
	// Stop also takes a volume in use, whose users stop meanwhile.
	Stop      bool   `json:"stop,omitempty"`
	Author    string `json:"author,omitempty"`
	RequestID string `json:"request_id,omitempty"`
}

// Volumes lists the volumes, with size also what they take.
func (c *Client) Volumes(ctx context.Context, size bool) (l List[VolumeInfo], err error) {
	return l, c.call(ctx, "GET", "/v1/volumes", sizeQuery(size), nil, &l)
}

// Volume returns one volume by its name.
func (c *Client) Volume(ctx context.Context, name string, size bool) (v VolumeInfo, err error) {
	return v, c.call(ctx, "GET", "/v1/volumes/"+url.PathEscape(name), sizeQuery(size), nil, &v)
}

func sizeQuery(size bool) url.Values {
	if !size {
		return nil
	}
	return url.Values{"size": {"true"}}
}

// CreateVolume makes a volume that belongs to no stack.
func (c *Client) CreateVolume(ctx context.Context, v CreateVolume) (w Written, err error) {
	return w, c.call(ctx, "POST", "/v1/volumes", nil, v, &w)
}

// MoveVolume begins to move a volume to another node; Volume tells when it is
// there.
func (c *Client) MoveVolume(ctx context.Context, name string, m MoveVolume) (w Written, err error) {
	return w, c.call(ctx, "POST", "/v1/volumes/"+url.PathEscape(name)+"/move", nil, m, &w)
}

// RemoveVolume deletes a volume and its data.
func (c *Client) RemoveVolume(ctx context.Context, name, requestID string) (w Written, err error) {
	return w, c.call(ctx, "DELETE", "/v1/volumes/"+url.PathEscape(name), url.Values{"request_id": {requestID}}, nil, &w)
}

// BackupVolume writes an archive of a volume to w: tar, compressed by
// Zstandard. node names one of several homes. What was written is worth nothing
// when there is an error.
func (c *Client) BackupVolume(ctx context.Context, name, node string, w io.Writer) error {
	resp, err := c.request(ctx, "GET", "/v1/volumes/"+url.PathEscape(name)+"/data", nodeQuery(node), nil, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("backup of volume %s: it is not whole: %w", name, err)
	}
	return nil
}

// RestoreVolume replaces the data of a volume by an archive, as a whole or not
// at all. node gives a home to a volume that has none, or names one of several.
func (c *Client) RestoreVolume(ctx context.Context, name, node string, archive io.Reader) error {
	resp, err := c.request(ctx, "PUT", "/v1/volumes/"+url.PathEscape(name)+"/data", nodeQuery(node), archive, "application/zstd")
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func nodeQuery(node string) url.Values {
	if node == "" {
		return nil
	}
	return url.Values{"node": {node}}
}

// VolumeSize asks a node what an instance takes there.
func (c *Client) VolumeSize(ctx context.Context, id spec.VolumeID) (s VolumeSize, err error) {
	return s, c.call(ctx, "GET", "/v1/node/volumes/"+url.PathEscape(string(id))+"/size", nil, nil, &s)
}

// GiveVolume opens the archive of an instance that a node gives to the one that
// asks.
func (c *Client) GiveVolume(ctx context.Context, id spec.VolumeID) (io.ReadCloser, error) {
	resp, err := c.request(ctx, "GET", "/v1/node/volumes/"+url.PathEscape(string(id))+"/give", nil, nil, "")
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}
