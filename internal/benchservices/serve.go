package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
)

// servePort is where backends answer, and services too.
const servePort = 8080

// serve plays a backend: it answers each byte with its own letter until the other side
// closes. It takes the name of the backend, of which the letter is the last one.
func serve(ctx context.Context, args []string, out io.Writer) error {
	set := flag.NewFlagSet("serve", flag.ContinueOnError)
	port := set.Int("port", servePort, "")
	letter := set.String("letter", "a", "")
	if err := set.Parse(args); err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", fmt.Sprintf(":%d", *port))
	if err != nil {
		return err
	}
	go func() {
		<-ctx.Done()
		l.Close()
	}()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go answer(c, (*letter)[0])
	}
}

func answer(c net.Conn, letter byte) {
	defer c.Close()
	for b := make([]byte, 1); ; {
		if _, err := c.Read(b); err != nil {
			return
		}
		b[0] = letter
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}
