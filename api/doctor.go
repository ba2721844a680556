package api

import "context"

// The outcomes of a Check.
const (
	CheckOK   = "ok"
	CheckWarn = "warn" // it works, and may not for long or not for everything
	CheckFail = "fail"
)

// Check is one thing that `wherry doctor` has looked at on a node.
type Check struct {
	// Name of the check, one word. Several checks of a name are of several things.
	Name   string `json:"name"`
	Status string `json:"status"`
	// Where says what was looked at: a folder, a port, a device, a node.
	Where string `json:"where,omitempty"`
	// What was found.
	What string `json:"what"`
	// Why it matters, and what to Do: sentences, or lines to be run as root. Both
	// are empty when all is well.
	Why string   `json:"why,omitempty"`
	Do  []string `json:"do,omitempty"`
}

// Doctor has the daemon look at its node.
func (c *Client) Doctor(ctx context.Context) (l List[Check], err error) {
	return l, c.call(ctx, "GET", "/v1/node/doctor", nil, nil, &l)
}

// Member returns what a manager says of itself, to another node.
func (c *Client) Member(ctx context.Context) (s MemberStatus, err error) {
	return s, c.call(ctx, "GET", "/v1/node/member", nil, nil, &s)
}
