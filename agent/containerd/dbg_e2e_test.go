//go:build e2e

package containerd

import (
	"slices"
	"testing"
	"time"

	"wherry.dev/tests/images"
)

func TestDebugSlots(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	res := map[int][]time.Duration{}
	var bare []time.Duration
	ns := []int{2, 3, 4, 6, 8, 50}
	for range 4 {
		for _, n := range ns {
			h.rt.slots = make(chan struct{}, n)
			res[n] = append(res[n], h.oursAtOnce(t, img, 50))
		}
		bare = append(bare, h.bareClient(t, img, 50))
	}
	for _, n := range ns {
		slices.Sort(res[n])
		t.Log(n, res[n])
	}
	slices.Sort(bare)
	t.Log("bare", bare)
}
