package embedded

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"

	"go.uber.org/zap/zapcore"
)

// logCore passes etcd's log on to slog. etcd is talkative: its warnings are logged for
// debugging only, and what is below them is dropped.
type logCore struct {
	log    *slog.Logger
	fields []zapcore.Field
	// closing is set while the member stops, which etcd reports as a failure of each of
	// its listeners.
	closing *atomic.Bool
	// removed is set when etcd stops because its member was removed: it says so nowhere
	// else.
	removed *atomic.Bool
}

// Enabled implements zapcore.LevelEnabler.
func (c logCore) Enabled(level zapcore.Level) bool { return level >= zapcore.WarnLevel }

// level is the level to log a line at. Lines that an operator need not act on are debug
// lines.
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

// noise lists what etcd logs as errors although nothing is wrong, by message and by a
// part of the cause.
var noise = []struct{ message, cause string }{
	// A new store has no snapshot yet; etcd retries.
	{"failed to update storage version", "missing term information"},
	// Others joined at the same time: whoever starts it tries again.
	{"bootstrap failed", "member count is unequal"},
	// A vote that was asked for twice, because the first answer was late.
	{"Validation on configuration change failed", "can only promote a learner member"},
	// A client without rights was refused. A removed node's agent keeps asking, and would
	// cause a line each time.
	{"cannot find a user for permission check", ""},
}

// How etcd says that it stops, and that it does because its member was removed.
const (
	stopMessage  = "server error"
	removedCause = "permanently removed from the cluster"
)

// With implements zapcore.Core.
func (c logCore) With(fields []zapcore.Field) zapcore.Core {
	c.fields = append(c.fields[:len(c.fields):len(c.fields)], fields...)
	return c
}

// Check implements zapcore.Core.
func (c logCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) && (entry.Message == stopMessage || c.log.Enabled(context.Background(), c.level(entry.Level, "", nil))) {
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
	if cause, _ := values.Fields["error"].(string); entry.Message == stopMessage && strings.Contains(cause, removedCause) {
		c.removed.Store(true)
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
