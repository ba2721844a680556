package agent

import "time"

// OnFile makes a tell f of every change that it makes to a file.
func OnFile(a *Agent, f func(op string)) { a.effect = f }

// SetClock makes a take its CLOCK_BOOTTIME from f.
func SetClock(a *Agent, f func() time.Duration) { a.leases.clock = f }
