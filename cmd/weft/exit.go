package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/statefile"
)

// The exit codes. Scripts rely on them.
const (
	exitOK          = 0
	exitNo          = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitIncapable   = 4
)

const exitCodes = `Exit codes:
  0  done, or the answer is yes
  1  the answer is no: an expectation failed, a manifest was refused, nothing was found
  2  the command line or a file it names was not understood
  3  a cluster could not be reached, or does not accept the certificate;
     answers of the others are shown
  4  this machine cannot do it: not root, no BPF, kernel too old, address
     in use, or the process is already running`

// usageError is a mistake on the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// incapable is an error about something this machine lacks.
type incapable struct{ error }

func (e incapable) Unwrap() error { return e.error }

// hinted is an error with what can be done about it.
type hinted struct {
	error
	hint string
}

func (e hinted) Unwrap() error { return e.error }

// said is an error that has been printed already; finish adds only its hint.
type said struct{ error }

func (e said) Unwrap() error { return e.error }

// errNo ends a command whose output has already explained the negative answer.
var errNo = errors.New("the answer is no")

// usageArgs turns a wrong number of arguments into a usage error that shows how the
// command is written.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if check(cmd, args) == nil {
			return nil
		}
		return usageError{fmt.Errorf("%s: usage: %s %s", cmd.CommandPath(), cmd.Parent().CommandPath(), cmd.Use)}
	}
}

// finish prints an error with a hint and returns the exit code.
func finish(root *cobra.Command, err error) int {
	var lines, hints []string
	for _, one := range parts(err) {
		if one == nil || one == errNo { // errors joined to errNo are still to be printed
			continue
		}
		// A command names itself by its full path, which begins with "weft".
		if !errors.As(one, new(said)) {
			lines = append(lines, "weft: "+strings.TrimPrefix(strings.TrimPrefix(one.Error(), "weft: "), "weft "))
		}
		if hint := explain(one); hint != "" {
			hints = append(hints, "hint: "+hint)
		}
	}
	printed := map[string]bool{} // several clusters may report the same
	for _, line := range append(lines, hints...) {
		if !printed[line] {
			fmt.Fprintln(root.ErrOrStderr(), printableLines(line))
		}
		printed[line] = true
	}
	return exitCode(err)
}

// parts returns the errors that were joined into one, such as those of several clusters.
func parts(err error) (all []error) {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || err.Error() != errors.Join(joined.Unwrap()...).Error() { // a message that wraps several errors is one error
		return []error{err}
	}
	for _, one := range joined.Unwrap() {
		all = append(all, parts(one)...)
	}
	return all
}

// exitCode returns the code of an error, the highest if there are several. An error may
// define its own with a method ExitCode.
func exitCode(err error) int {
	if all := parts(err); len(all) > 1 {
		highest := exitOK
		for _, one := range all {
			highest = max(highest, exitCode(one))
		}
		return highest
	}
	var usage usageError
	var lack incapable
	var refusal *api.Error
	var own interface{ ExitCode() int }
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &own):
		return own.ExitCode()
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &lack), errors.Is(err, statefile.ErrInUse), forbidden(err), listening(err):
		return exitIncapable
	case errors.As(err, &refusal):
		if refusal.Status == http.StatusUnauthorized || refusal.Status == http.StatusBadGateway ||
			refusal.Status == http.StatusServiceUnavailable || refusal.Status == http.StatusGatewayTimeout {
			return exitUnreachable
		}
		return exitNo
	case unreachable(err):
		return exitUnreachable
	}
	return exitNo
}

func unreachable(err error) bool {
	var alert tls.AlertError
	var verify *tls.CertificateVerificationError
	return connection(err) != nil || errors.As(err, &alert) || errors.As(err, &verify) ||
		errors.Is(err, context.DeadlineExceeded)
}

// connection returns the error of connecting to a remote, or of talking to it. It is nil
// if we were waiting for others to connect.
func connection(err error) *net.OpError {
	var op *net.OpError
	if !errors.As(err, &op) || listening(err) {
		return nil
	}
	return op
}

// listening reports whether this machine could not listen on the address: it is in use,
// forbidden, or not one of the machine's.
func listening(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "listen"
}

// forbidden reports whether this machine denied permission. A remote that a local
// firewall forbids is unreachable instead.
func forbidden(err error) bool {
	to := connection(err)
	return errors.Is(err, fs.ErrPermission) && (to == nil || to.Net == "unix")
}

// explain turns a known cause into advice; it is empty if the error already says
// everything.
func explain(err error) (hint string) {
	var refusal *api.Error
	var hostname x509.HostnameError
	var usage usageError
	var own hinted
	to := connection(err)
	switch {
	case errors.As(err, &own):
		return own.hint
	case errors.As(err, &refusal):
		return refusal.Hint
	case errors.As(err, &hostname):
		return "the context's server is not one of the names in the server's certificate; name it in the API server's configuration, or use an address it has"
	case to != nil && to.Net == "unix" && errors.Is(err, fs.ErrPermission):
		return "run it as root: only root may use the socket"
	case to != nil && to.Net == "unix":
		return "is `weft agent` running on this machine? Its socket is " + agentSocket + "; name another with --socket"
	case errors.Is(err, context.DeadlineExceeded):
		return "allow more time with --timeout, or check whether `weft apiserver` runs there"
	case to != nil && to.Op == "dial":
		return "does `weft apiserver` run there, and is the context's server right? `weft version -o json` shows which file the contexts come from"
	case listening(err) && errors.Is(err, syscall.EADDRINUSE):
		return "`ss -lntup` shows which process has the address: stop that one, or choose another address"
	case forbidden(err) && !errors.As(err, &usage) && os.Geteuid() != 0:
		return "run it as root"
	}
	return ""
}
