package cluster

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

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

// everyday are the records that come again and again while another member does
// not answer, which is said elsewhere, and that each change of leader brings.
var everyday = []string{
	"failed to heartbeat to", "failed to appendEntries to", "failed to contact", "failed to make request", "failed to pipeline appendEntries",
	"failed to decode incoming command", "failed to send snapshot to", "failed to start pipeline replication", "Election timeout reached",
	"failed to flush response", "peer has newer term", "aborting pipeline replication",
}

// Accept takes one record; args are keys and values in turn.
func (s slogSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	switch level {
	case hclog.Error:
		to = slog.LevelError
	case hclog.Warn:
		to = slog.LevelInfo
	}
	for _, u := range everyday {
		if strings.HasPrefix(msg, u) {
			to = slog.LevelDebug
		}
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
