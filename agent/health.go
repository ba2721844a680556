package agent

import (
	"fmt"
	"strings"
	"time"

	"wherry.dev/spec"
)

// The defaults of health checks, as Docker has them.
const (
	defaultInterval      = 30 * time.Second
	defaultTimeout       = 30 * time.Second
	defaultStartInterval = 5 * time.Second
	defaultRetries       = 3
)

// health is the progress of the check of the present attempt.
type health struct {
	// Last is when the last probe ended; zero before the first.
	Last time.Time `json:"last,omitzero"`
	// Passed: a probe has succeeded, which ends the start period early.
	Passed bool `json:"passed,omitempty"`
	// Failures in a row that count.
	Failures int `json:"failures,omitempty"`
	// Output is the last line of the last failed probe.
	Output string `json:"output,omitempty"`
}

// probeResult is what one probe found.
type probeResult struct {
	ok bool
	// void: it could not be found out whether the container is healthy.
	void   bool
	output string
	at     time.Time
}

// resolveCheck combines the template's check with the image's and fills in the
// defaults; nil is no check. A template's check without a test changes the
// times of the image's.
func resolveCheck(tmpl, image *spec.HealthCheck) *spec.HealthCheck {
	var c spec.HealthCheck
	switch {
	case tmpl == nil && image == nil:
		return nil
	case tmpl == nil:
		c = *image
	case len(tmpl.Test) == 0 && image != nil:
		c = *tmpl
		c.Test = image.Test
		c.Interval = orDuration(c.Interval, image.Interval)
		c.Timeout = orDuration(c.Timeout, image.Timeout)
		c.StartPeriod = orDuration(c.StartPeriod, image.StartPeriod)
		c.StartInterval = orDuration(c.StartInterval, image.StartInterval)
		if c.Retries <= 0 {
			c.Retries = image.Retries
		}
	default:
		c = *tmpl
	}
	if len(c.Test) == 0 || c.Test[0] == "NONE" || len(c.Test) == 1 {
		return nil
	}
	c.Interval = orDuration(c.Interval, spec.Duration(defaultInterval))
	c.Timeout = orDuration(c.Timeout, spec.Duration(defaultTimeout))
	c.StartInterval = orDuration(c.StartInterval, spec.Duration(defaultStartInterval))
	if c.Retries <= 0 {
		c.Retries = defaultRetries
	}
	return &c
}

func orDuration(d, or spec.Duration) spec.Duration {
	if d > 0 {
		return d
	}
	return or
}

// probeArgs returns the command of a check. A bare list without one of
// Docker's words is a command.
func probeArgs(c *spec.HealthCheck) []string {
	switch c.Test[0] {
	case "CMD":
		return c.Test[1:]
	case "CMD-SHELL":
		return []string{"/bin/sh", "-c", strings.Join(c.Test[1:], " ")}
	default:
		return c.Test
	}
}

// inStartPeriod reports whether failures at time t do not count yet.
func inStartPeriod(c *spec.HealthCheck, h health, started, t time.Time) bool {
	return !h.Passed && t.Before(started.Add(c.StartPeriod.D()))
}

// probeDue returns when the next probe is due: one interval after the start or
// after the end of the last probe, by the interval of the period it is in.
func probeDue(c *spec.HealthCheck, h health, started time.Time) time.Time {
	from := started
	if !h.Last.IsZero() {
		from = h.Last
	}
	if inStartPeriod(c, h, started, from) {
		return from.Add(c.StartInterval.D())
	}
	return from.Add(c.Interval.D())
}

// probed takes note of a probe of a running attempt.
func probed(m memory, c *spec.HealthCheck, r probeResult) memory {
	if m.Attempt == nil {
		return m
	}
	a := *m.Attempt
	early := inStartPeriod(c, m.Health, a.Started, r.at)
	m.Health.Last = r.at
	switch {
	case r.void:
		return m
	case r.ok:
		m.Health.Passed, m.Health.Failures, m.Health.Output = true, 0, ""
		m.setHealth(spec.HealthHealthy, r.at)
		m.Status.Reason = ""
		if a.GoodSince.IsZero() {
			a.GoodSince = r.at
		}
	case early:
		m.Health.Output = r.output
		m.Status.Reason = withOutput("health check does not pass yet", r.output)
	default:
		m.Health.Failures++
		m.Health.Output = r.output
		m.Status.Reason = withOutput(fmt.Sprintf("health check failed %s", times(m.Health.Failures)), r.output)
		if m.Health.Failures >= c.Retries {
			a.Unhealthy = m.Status.Reason
			m.setHealth(spec.HealthUnhealthy, r.at)
		}
	}
	m.Attempt = &a
	return m
}

func withOutput(s, output string) string {
	if output == "" {
		return s
	}
	return s + ": " + output
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}
