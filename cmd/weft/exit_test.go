package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/statefile"
)

func TestExitCodes(t *testing.T) {
	away := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	for name, c := range map[string]struct {
		err  error
		code int
	}{
		"done":                             {nil, exitOK},
		"a folder of root's":               {fmt.Errorf("state directory: %w", &fs.PathError{Op: "mkdir", Path: "/x", Err: syscall.EACCES}), exitIncapable},
		"a device of root's":               {fmt.Errorf("read lane weft0: %w", syscall.EPERM), exitIncapable},
		"a socket of root's":               {&net.OpError{Op: "dial", Net: "unix", Err: syscall.EACCES}, exitIncapable},
		"no agent at the socket":           {&net.OpError{Op: "dial", Net: "unix", Err: syscall.ENOENT}, exitUnreachable},
		"a firewall of ours":               {&net.OpError{Op: "dial", Net: "tcp", Err: syscall.EPERM}, exitUnreachable},
		"a port of root's":                 {&net.OpError{Op: "listen", Net: "tcp", Err: syscall.EACCES}, exitIncapable},
		"a second agent":                   {fmt.Errorf("start: %w", statefile.ErrInUse), exitIncapable},
		"a port in use":                    {&net.OpError{Op: "listen", Net: "tcp", Err: syscall.EADDRINUSE}, exitIncapable},
		"an address of another machine":    {&net.OpError{Op: "listen", Net: "tcp", Err: syscall.EADDRNOTAVAIL}, exitIncapable},
		"a connection that breaks":         {&net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}, exitUnreachable},
		"a refused certificate":            {&net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}, exitUnreachable},
		"a named file of root's":           {usageError{&fs.PathError{Op: "open", Path: "x", Err: syscall.EACCES}}, exitUsage},
		"a refusal":                        {api.NotFound("", "there is none"), exitNo},
		"one cluster refuses, one is away": {errors.Join(api.NotFound("", "there is none"), away), exitUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			if code := exitCode(c.err); code != c.code {
				t.Errorf("exit code %d of %v, want %d", code, c.err, c.code)
			}
		})
	}
}

// A listener that fails is distinguished from a cluster that is unreachable.
func TestAdviceOnListening(t *testing.T) {
	for name, c := range map[string]struct {
		err  *net.OpError
		want string
	}{
		"a port in use":            {&net.OpError{Op: "listen", Net: "tcp", Err: syscall.EADDRINUSE}, "choose another address"},
		"a socket in use":          {&net.OpError{Op: "listen", Net: "unix", Err: syscall.EADDRINUSE}, "choose another address"},
		"nobody at the address":    {&net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}, "does `weft apiserver` run there"},
		"no agent at the socket":   {&net.OpError{Op: "dial", Net: "unix", Err: syscall.ENOENT}, "is `weft agent` running"},
		"a socket's folder absent": {&net.OpError{Op: "listen", Net: "unix", Err: syscall.ENOENT}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			hint := explain(fmt.Errorf("start: %w", c.err))
			if !strings.Contains(hint, c.want) || (hint == "") != (c.want == "") {
				t.Errorf("hint %q of %v, want %q", hint, c.err, c.want)
			}
		})
	}
}

// errNo prints nothing; what was joined to it is printed.
func TestFinishPrints(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want string
		code int
	}{
		"nothing when done":       {nil, "", exitOK},
		"nothing of an answer":    {errNo, "", exitNo},
		"what is joined to it":    {errors.Join(errNo, errors.New("disk full")), "weft: disk full\n", exitNo},
		"what it is joined to":    {errors.Join(usageError{errors.New("no such file")}, errNo), "weft: no such file\n", exitUsage},
		"the same of two once":    {errors.Join(errors.New("away"), errors.New("away")), "weft: away\n", exitNo},
		"hints after every error": {errors.Join(hinted{errors.New("a"), "c"}, errors.New("b")), "weft: a\nweft: b\nhint: c\n", exitNo},
	} {
		t.Run(name, func(t *testing.T) {
			var printed strings.Builder
			root := rootCommand()
			root.SetErr(&printed)
			if code := finish(root, c.err); code != c.code || printed.String() != c.want {
				t.Errorf("printed %q with exit code %d, want %q with %d", printed.String(), code, c.want, c.code)
			}
		})
	}
}
