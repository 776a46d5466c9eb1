package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

const (
	// attempt is how long one connection may take that should be established within
	// microseconds.
	attempt = 20 * time.Millisecond
	// between is the pause between two attempts.
	between = time.Millisecond
)

// call makes one connection, and returns the letter of the backend.
func call(ctx context.Context, to string) (byte, error) {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp4", to)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(attempt)) // it is a socket
	b := []byte{'?'}
	if _, err := c.Write(b); err != nil {
		return 0, err
	}
	_, err = io.ReadFull(c, b)
	return b[0], err
}

// await prints the time, in nanoseconds since 1970, when each of some services had
// answered once.
func await(ctx context.Context, args []string, out io.Writer) error {
	set := flag.NewFlagSet("await", flag.ContinueOnError)
	to := set.String("to", "", "")
	patience := set.Duration("patience", time.Minute, "")
	if err := set.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *patience)
	defer cancel()
	services := strings.Split(*to, ",")
	for i, service := range services {
		for {
			_, err := call(ctx, service)
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("service %s, the %d. of %d, does not answer within %v: %w", service, i+1, len(services), *patience, err)
			case <-time.After(between):
			}
		}
	}
	return json.NewEncoder(out).Encode(time.Now().UnixNano())
}

// A turn is when a service was first answered by another backend.
type turn struct {
	Letter string `json:"letter"`
	At     int64  `json:"at"` // nanoseconds since 1970
}

// watch connects to a service every millisecond and prints each turn, until ctx ends.
func watch(ctx context.Context, args []string, out io.Writer) error {
	set := flag.NewFlagSet("watch", flag.ContinueOnError)
	to := set.String("to", "", "")
	if err := set.Parse(args); err != nil {
		return err
	}
	lines := json.NewEncoder(out)
	var last byte
	for ctx.Err() == nil {
		letter, err := call(ctx, *to)
		if err == nil && letter != last {
			last = letter
			if err := lines.Encode(turn{string(letter), time.Now().UnixNano()}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(between):
		}
	}
	return nil
}
