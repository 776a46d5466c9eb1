package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-mesh/weft/api"
)

func TestAChangeUnderWay(t *testing.T) {
	for name, c := range map[string]struct {
		lasts time.Duration
		want  string
	}{
		"a short change says nothing":         {900 * time.Millisecond, ""},
		"a long one says how far it is":       {3100 * time.Millisecond, "\r\x1b[Kapplying for 3s, east: 400 of 4200 writes made, west: 7 of 9 writes made\r\x1b[K"},
		"and its line is removed at the end":  {1100 * time.Millisecond, "\r\x1b[Kapplying for 1s\r\x1b[K"},
		"also if it ends before another line": {1200 * time.Millisecond, "\r\x1b[Kapplying for 1s\r\x1b[K"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				p := &underway{doing: "applying", began: time.Now(), of: map[string]api.Progress{}}
				end := p.show(&out)
				time.Sleep(c.lasts / 2)
				if c.lasts > 2*tellAfter {
					p.note("west", api.Progress{Made: 7, Of: 9})
					p.note("east", api.Progress{Made: 400, Of: 4200})
				}
				time.Sleep(c.lasts / 2)
				end()
				if got := out.String(); !strings.HasSuffix(got, c.want) || c.want == "" && got != "" {
					t.Errorf("%q, want %q at its end", got, c.want)
				}
			})
		})
	}
}
