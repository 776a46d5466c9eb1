package embedded

import (
	"context"
	"log/slog"
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
	return level >= zapcore.WarnLevel && c.log.Enabled(context.Background(), c.level(level))
}

func (c logCore) level(level zapcore.Level) slog.Level {
	if level >= zapcore.ErrorLevel && !c.closing.Load() {
		return slog.LevelError
	}
	return slog.LevelDebug
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
	c.log.LogAttrs(context.Background(), c.level(entry.Level), "etcd: "+entry.Message, attrs...)
	return nil
}

// Sync implements zapcore.Core.
func (logCore) Sync() error { return nil }
