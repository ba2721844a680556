package cluster

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// hclogTo returns a logger for Raft and its log store that writes to l. What
// the library calls information is detail to an operator, and most of its
// warnings are the ordinary course of an election: both go down one level.
func hclogTo(l *slog.Logger) hclog.Logger {
	h := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard, Level: hclog.Off})
	h.RegisterSink(slogSink{l.With("component", "raft")})
	return h
}

type slogSink struct{ l *slog.Logger }

// Accept takes one record; args are keys and values in turn.
func (s slogSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case hclog.Error:
		to = slog.LevelError
	case hclog.Warn:
		to = slog.LevelInfo
	}
	if !s.l.Enabled(context.Background(), to) {
		return
	}
	for i, a := range args {
		switch v := a.(type) {
		case hclog.Format:
			args[i] = fmt.Sprintf(v[0].(string), v[1:]...)
		case fmt.Stringer:
			args[i] = v.String()
		}
	}
	s.l.Log(context.Background(), to, msg, args...)
}
