package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// profileSlice is how many seconds one profile covers. `go tool pprof` adds up the
// profiles that it is given.
const profileSlice = 5

// takeProfiles profiles agent and API server until the function it returns is called,
// which waits for the last profiles and takes those of the heaps, unless the run ends. Files are named after
// prefix, process and number.
func (b *bench) takeProfiles(run context.Context, prefix string) func() {
	ctx, cancel := context.WithCancel(run)
	agent := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", b.node.Path("/run/weft/agent.sock"))
	}}}
	sources := map[string]struct {
		client *http.Client
		base   string
	}{"agent": {agent, "http://unix"}, "apiserver": {b.hub.client, b.hub.server}}
	var taking sync.WaitGroup
	for name, source := range sources {
		taking.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				text, err := get(run, source.client, fmt.Sprintf("%s/debug/pprof/profile?seconds=%d", source.base, profileSlice))
				if err != nil { // it is starting, or has gone
					_ = sleep(ctx, 100*time.Millisecond)
					continue
				}
				writeFile(fmt.Sprintf("%s-%s-%02d.pb.gz", prefix, name, n), text)
			}
		})
	}
	return func() {
		cancel()
		taking.Wait()
		if run.Err() != nil {
			return
		}
		for name, source := range sources {
			text, err := get(run, source.client, source.base+"/debug/pprof/heap")
			if err != nil {
				progress("heap profile of %s: %v", name, err)
				continue
			}
			writeFile(fmt.Sprintf("%s-%s-heap.pb.gz", prefix, name), text)
		}
	}
}

func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, (profileSlice+10)*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return io.ReadAll(resp.Body)
}
