package embedded

import (
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Of what etcd logs, operators see what they must know, while the member runs.
func TestLog(t *testing.T) {
	var out strings.Builder
	closing := new(atomic.Bool)
	log := zap.New(logCore{log: slog.New(slog.NewTextHandler(&out, nil)), closing: closing}).With(zap.String("member", "m"))
	unsure := zap.Error(errors.New("cannot detect storage schema version: missing term information"))
	for _, tt := range []struct {
		name  string
		write func()
		want  string
	}{
		{"an error", func() { log.Error("failed to apply", zap.Error(errors.New("disk is full"))) }, `level=ERROR msg="etcd: failed to apply"`},
		{"a warning", func() { log.Warn("apply request took too long") }, ""},
		{"chatter", func() { log.Info("serving client traffic") }, ""},
		{"a new store has no version", func() { log.Error("failed to update storage version", unsure) }, ""},
		{"a version that cannot be written", func() { log.Error("failed to update storage version", zap.Error(errors.New("disk is full"))) }, "level=ERROR"},
		{"the same cause of something else", func() { log.Error("failed to open", unsure) }, "level=ERROR"},
		{"a stranger", func() { log.Error("cannot find a user for permission check", zap.String("user-name", "agent-n1")) }, ""},
		{"while it stops", func() { closing.Store(true); log.Error("failed to accept") }, ""},
		{"what ends the process, while it stops", func() { log.WithOptions(zap.WithFatalHook(zapcore.WriteThenPanic)).Fatal("the log is gone") }, "level=ERROR"},
	} {
		out.Reset()
		func() {
			defer func() { _ = recover() }() // a fatal line ends with a panic here
			tt.write()
		}()
		if got := out.String(); tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
