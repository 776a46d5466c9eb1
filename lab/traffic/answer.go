// Package traffic provides the servers and clients that a lab's pods run: servers
// name themselves and the peer they see, clients record when every request was made
// and how it ended.
//
// Scripts decide which pod runs what, and what is expected.
package traffic

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// Marker is part of everything that servers and clients send. A capture that contains
// it has seen payload in the clear.
const Marker = "weft-payload-in-the-clear-7f3a91"

// Answer is what a server says about itself and about the request.
type Answer struct {
	Cluster, Node, Namespace, Pod string // of the server
	Peer                          string // address and port the request came from
	Echo                          string // a word from the request, to match answers to requests
}

// Self is an Answer that names the pod in which the process runs.
func Self() Answer {
	return Answer{Cluster: os.Getenv("WEFT_CLUSTER"), Node: os.Getenv("WEFT_NODE"), Namespace: os.Getenv("WEFT_NAMESPACE"), Pod: os.Getenv("WEFT_POD")}
}

// String is the line that travels: words such as cluster=west, and the marker.
func (a Answer) String() string {
	var b strings.Builder
	for _, f := range a.fields() {
		if *f.value != "" {
			fmt.Fprintf(&b, "%s=%s ", f.name, *f.value)
		}
	}
	return b.String() + Marker
}

type field struct {
	name  string
	value *string
}

func (a *Answer) fields() []field {
	return []field{{"cluster", &a.Cluster}, {"node", &a.Node}, {"namespace", &a.Namespace}, {"pod", &a.Pod}, {"peer", &a.Peer}, {"echo", &a.Echo}}
}

// ParseAnswer reads a line made by String. It ignores unknown words.
func ParseAnswer(line string) (Answer, error) {
	var a Answer
	words := strings.Fields(line)
	if len(words) == 0 || words[len(words)-1] != Marker {
		return a, fmt.Errorf("answer %q is not from a server of the lab", line)
	}
	for _, word := range words {
		name, value, _ := strings.Cut(word, "=")
		for _, f := range a.fields() {
			if f.name == name {
				*f.value = value
			}
		}
	}
	return a, nil
}

// Reason says in one word how a request failed: refused, reset, timeout, unreachable,
// closed, unknown-name or other.
func Reason(err error) string {
	var dns *net.DNSError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &dns):
		return "unknown-name"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.ECONNABORTED), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EPERM):
		return "unreachable"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "closed"
	}
	return "other"
}

// RefusedWithin is nil if a request that took this long and ended with err was refused
// in time: by a reset or an ICMP error rather than by its own timeout.
func RefusedWithin(limit, took time.Duration, err error) error {
	switch {
	case err == nil:
		return errors.New("answered, but should have been refused")
	case Reason(err) != "refused":
		return fmt.Errorf("should have been refused within %v, but ended after %v: %w", limit, took.Round(time.Millisecond), err)
	case took > limit:
		return fmt.Errorf("refused only after %v, not within %v: %w", took.Round(time.Millisecond), limit, err)
	}
	return nil
}
