package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/weft-mesh/weft/api"
)

// A change that takes longer than tellAfter tells how far it is, on a terminal.
const (
	tellAfter = time.Second
	tellPause = 250 * time.Millisecond
)

// eachPatiently is each for changes that may take a while. doing is what the user is told
// meanwhile, such as "applying".
func eachPatiently(cmd *cobra.Command, doing string, ask func(context.Context, *api.Client) (*api.ApplyResult, error)) ([]*api.ApplyResult, error) {
	p := &underway{doing: doing, began: time.Now(), of: map[string]api.Progress{}}
	if f, ok := cmd.ErrOrStderr().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		defer p.show(f)()
	}
	return each(cmd, func(ctx context.Context, c *api.Client) (*api.ApplyResult, error) {
		result, err := ask(api.WithProgress(ctx, func(made api.Progress) { p.note(c.Name(), made) }), c)
		if errors.Is(err, context.DeadlineExceeded) {
			err = hinted{err, "the API server may still finish it: repeat the command with a longer --timeout; what was done is not done twice"}
		}
		return result, err
	})
}

// underway is what is known of a change that is under way.
type underway struct {
	doing string
	began time.Time

	mu sync.Mutex // guards of
	of map[string]api.Progress
}

func (p *underway) note(cluster string, made api.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of[cluster] = made
}

// line is what is shown at a time.
func (p *underway) line(now time.Time) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	parts := []string{fmt.Sprintf("%s for %ds", p.doing, now.Sub(p.began)/time.Second)}
	for _, name := range slices.Sorted(maps.Keys(p.of)) {
		parts = append(parts, fmt.Sprintf("%s: %d of %d writes made", name, p.of[name].Made, p.of[name].Of))
	}
	return strings.Join(parts, ", ")
}

// show writes the line again and again, until the function that it returns is called,
// which removes it.
func (p *underway) show(out io.Writer) (end func()) {
	const erase = "\r\x1b[K"
	stop := make(chan struct{})
	var shown sync.WaitGroup
	shown.Go(func() {
		timer := time.NewTimer(tellAfter)
		defer timer.Stop()
		for {
			select {
			case <-stop:
				return
			case <-timer.C:
			}
			fmt.Fprint(out, erase+p.line(time.Now()))
			timer.Reset(tellPause)
		}
	})
	return func() {
		close(stop)
		shown.Wait()
		if time.Since(p.began) > tellAfter {
			fmt.Fprint(out, erase)
		}
	}
}
