package tunnel

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// logPause is the pause between two log lines about one kind of error. Some of
// wireguard-go's errors come with every packet, such as those of a network that is
// down.
const logPause = 10 * time.Second

// deviceLogger logs wireguard-go's errors, each kind once per logPause with their
// number. What wireguard-go calls verbose is a line per handshake of every peer, so
// it goes to debug.
func deviceLogger(log *slog.Logger) *device.Logger {
	l := &limitedLog{log: log, kinds: map[string]*logged{}}
	return &device.Logger{
		Verbosef: func(format string, args ...any) {
			if log.Enabled(context.Background(), slog.LevelDebug) {
				log.Debug(fmt.Sprintf(format, args...))
			}
		},
		Errorf: l.errorf,
	}
}

type limitedLog struct {
	log *slog.Logger

	mu    sync.Mutex
	kinds map[string]*logged // guarded by mu, by format: there are a few dozen
}

type logged struct {
	last   time.Time
	untold int
}

func (l *limitedLog) errorf(format string, args ...any) {
	l.mu.Lock()
	kind, known := l.kinds[format]
	if !known {
		kind = &logged{}
		l.kinds[format] = kind
	}
	if known && time.Since(kind.last) < logPause {
		kind.untold++
		l.mu.Unlock()
		return
	}
	untold := kind.untold
	kind.last, kind.untold = time.Now(), 0
	l.mu.Unlock()
	if untold > 0 {
		l.log.Warn(fmt.Sprintf(format, args...), "untold", untold)
		return
	}
	l.log.Warn(fmt.Sprintf(format, args...))
}
