package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"
	"testing"

	"github.com/weft-mesh/weft/apiserver/api"
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
