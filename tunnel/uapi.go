package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/device"
)

// maxRequest bounds the size of a configuration request, in bytes: enough for 65,536
// peers, the most that a device has, with a few prefixes each.
const maxRequest = 64 << 20

// listenUAPI opens the socket through which wgctrl configures a device. A socket that a
// killed process left is replaced; one that answers is an error.
func listenUAPI(path string) (*net.UnixListener, error) {
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("socket %s: another process answers there; stop it first", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replace stale socket: %w", err)
	}
	// Created aside with its final mode and then renamed, so that it is never open to
	// others.
	aside := path + ".new"
	if err := os.Remove(aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replace stale socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: aside, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("configuration socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // it would unlink the old name
	if err := os.Chmod(aside, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("configuration socket: %w", err)
	}
	if err := os.Rename(aside, path); err != nil {
		l.Close()
		return nil, fmt.Errorf("configuration socket: %w", err)
	}
	return l, nil
}

// serveUAPI answers configuration requests until ctx ends. It saves each change before
// confirming it.
func serveUAPI(ctx context.Context, l *net.UnixListener, path string, dev *device.Device, saved *savedConfig, log *slog.Logger) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return saved.retry(ctx, dev) })
	g.Go(func() error {
		// This cannot be a successor's socket: this process still holds the TUN
		// device.
		defer os.Remove(path)
		stop := context.AfterFunc(ctx, func() { l.Close() })
		defer stop()
		for {
			c, err := l.Accept()
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return fmt.Errorf("configuration socket: %w", err)
			}
			g.Go(func() error {
				stop := context.AfterFunc(ctx, func() { c.Close() })
				defer stop()
				defer c.Close()
				answer(c, dev, saved, log)
				return nil
			})
		}
	})
	return g.Wait()
}

// answer serves the requests of one connection, in WireGuard's cross-platform
// configuration protocol.
func answer(c net.Conn, dev *device.Device, saved *savedConfig, log *slog.Logger) {
	r, w := bufio.NewReader(c), bufio.NewWriter(c)
	for {
		operation, err := r.ReadString('\n')
		if err != nil {
			return
		}
		body, err := readRequest(r)
		if err != nil {
			log.Warn("configuration request is truncated or too long", "error", err)
			return
		}
		switch operation {
		case "get=1\n":
			err = dev.IpcGetOperation(w)
		case "set=1\n":
			err = saved.change(dev, body)
		default:
			log.Warn("unknown configuration request", "request", strings.TrimSpace(operation))
			return
		}
		if _, err := fmt.Fprintf(w, "errno=%d\n\n", errno(err)); err != nil {
			return
		}
		if err := w.Flush(); err != nil {
			return
		}
	}
}

// readRequest reads up to the empty line that ends a request.
func readRequest(r *bufio.Reader) (string, error) {
	var body strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", err
		}
		if line == "\n" {
			return body.String(), nil
		}
		if body.Len()+len(line) > maxRequest {
			return "", fmt.Errorf("more than %d bytes", maxRequest)
		}
		body.WriteString(line)
	}
}

// errno is the number for err in an answer; 0 for nil.
func errno(err error) int64 {
	var refused *device.IPCError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &refused):
		return refused.ErrorCode()
	}
	return int64(syscall.EIO)
}
