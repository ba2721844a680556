package api

import (
	"context"
	"net/url"
	"time"

	"wherry.dev/spec"
)

// PutDatum is the body of "secret.put" and "config.put".
type PutDatum struct {
	// Data are the bytes; no answer ever has them.
	Data []byte `json:"data"`
	// Labels and Render; none of them keeps what there is. With Render, Data is a template
	// that every node renders.
	Labels map[string]string `json:"labels,omitempty"`
	Render *bool             `json:"render,omitempty"`
	// Replace makes a new version of what exists with other bytes or labels.
	Replace bool `json:"replace,omitempty"`
	// Base is the DatumInfo.Version that the caller has seen; 0 says that it must
	// not exist, nil that it does not matter.
	Base      *uint64 `json:"base,omitempty"`
	Author    string  `json:"author,omitempty"`
	RequestID string  `json:"request_id,omitempty"`
}

// DatumWritten answers a write of a secret or config.
type DatumWritten struct {
	Written
	// Users are the services that get the version, as "stack/service".
	Users []string `json:"users"`
}

// DatumInfo is a secret or config as people see it, without its bytes.
type DatumInfo struct {
	// Name is the cluster-wide one.
	Name string `json:"name"`
	// Stack that it belongs to; empty when it exists by itself.
	Stack  string            `json:"stack,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	Render bool              `json:"render,omitempty"`
	// Size of the version in force in bytes, and when it came.
	Size    int       `json:"size"`
	Updated time.Time `json:"updated"`
	// Users are the services that use it, as "stack/service".
	Users []string `json:"users"`
	// Version to base a write on; 0 for one that belongs to a stack.
	Version uint64 `json:"version,omitempty"`
	// Versions that are kept, newest first.
	Versions []DatumVersion `json:"versions"`
}

// DatumVersion is one version of a secret or config.
type DatumVersion struct {
	// ID is the beginning of a keyed hash: versions are equal when it is.
	ID      string    `json:"id"`
	Size    int       `json:"size"`
	Created time.Time `json:"created"`
	Author  string    `json:"author,omitempty"`
	Current bool      `json:"current"`
	// Tasks is how many tasks that are not over have it.
	Tasks int `json:"tasks"`
	// Revisions are the kept revisions of stacks that have it, as "stack@number".
	Revisions []string `json:"revisions,omitempty"`
}

func datumPath(k spec.DatumKind, name string) string {
	return "/v1/" + string(k) + "s/" + url.PathEscape(name)
}

// Data lists the secrets or configs.
func (c *Client) Data(ctx context.Context, k spec.DatumKind) (l List[DatumInfo], err error) {
	return l, c.call(ctx, "GET", "/v1/"+string(k)+"s", nil, nil, &l)
}

// Datum returns one secret or config by its cluster-wide name.
func (c *Client) Datum(ctx context.Context, k spec.DatumKind, name string) (d DatumInfo, err error) {
	return d, c.call(ctx, "GET", datumPath(k, name), nil, nil, &d)
}

// PutDatum makes a secret or config that belongs to no stack, or a version.
func (c *Client) PutDatum(ctx context.Context, k spec.DatumKind, name string, p PutDatum) (w DatumWritten, err error) {
	return w, c.call(ctx, "PUT", datumPath(k, name), nil, p, &w)
}

// RemoveDatum removes a secret or config that nobody uses.
func (c *Client) RemoveDatum(ctx context.Context, k spec.DatumKind, name, requestID string) (w Written, err error) {
	return w, c.call(ctx, "DELETE", datumPath(k, name), url.Values{"request_id": {requestID}}, nil, &w)
}
