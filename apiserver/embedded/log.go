package embedded

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"

	"go.uber.org/zap/zapcore"
)

// logCore passes etcd's log on to slog. etcd is talkative: what it calls a
// warning is of interest to whoever debugs it, and its chatter to nobody.
type logCore struct {
	log    *slog.Logger
	fields []zapcore.Field
	// closing is set while the member stops; etcd calls that a failure of each
	// of its listeners.
	closing *atomic.Bool
}

// Enabled implements zapcore.LevelEnabler.
func (c logCore) Enabled(level zapcore.Level) bool {
	return level >= zapcore.WarnLevel && c.log.Enabled(context.Background(), c.level(level, "", nil))
}

// level of a line with these fields. A debug line is one that asks nothing of an
// operator.
func (c logCore) level(level zapcore.Level, message string, fields map[string]any) slog.Level {
	switch {
	case level > zapcore.ErrorLevel: // it ends the process
		return slog.LevelError
	case level < zapcore.ErrorLevel, c.closing.Load():
		return slog.LevelDebug
	}
	cause, _ := fields["error"].(string)
	for _, n := range noise {
		if n.message == message && strings.Contains(cause, n.cause) {
			return slog.LevelDebug
		}
	}
	return slog.LevelError
}

// noise are etcd's errors that are none: message, and what its cause contains.
var noise = []struct{ message, cause string }{
	// A new store has no snapshot yet; etcd tries again by itself.
	{"failed to update storage version", "missing term information"},
	// Somebody who has no rights is told so. A removed node asks on and on, and each
	// time would be a line.
	{"cannot find a user for permission check", ""},
}

// With implements zapcore.Core.
func (c logCore) With(fields []zapcore.Field) zapcore.Core {
	c.fields = append(c.fields[:len(c.fields):len(c.fields)], fields...)
	return c
}

// Check implements zapcore.Core.
func (c logCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

// Write implements zapcore.Core.
func (c logCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	values := zapcore.NewMapObjectEncoder()
	for _, f := range append(c.fields[:len(c.fields):len(c.fields)], fields...) {
		f.AddTo(values)
	}
	attrs := make([]slog.Attr, 0, len(values.Fields))
	for key, value := range values.Fields {
		attrs = append(attrs, slog.Any(key, value))
	}
	c.log.LogAttrs(context.Background(), c.level(entry.Level, entry.Message, values.Fields), "etcd: "+entry.Message, attrs...)
	return nil
}

// Sync implements zapcore.Core.
func (logCore) Sync() error { return nil }
