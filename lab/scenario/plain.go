package scenario

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/weft-mesh/weft/lab/script"
)

// Plain reports a run as lines of text.
type Plain struct {
	Out io.Writer

	begin time.Time
	live  *Live
}

// NewPlain makes a View that prints.
func NewPlain(out io.Writer) *Plain { return &Plain{Out: out, begin: time.Now()} }

func (p *Plain) line(format string, args ...any) {
	fmt.Fprintf(p.Out, "%6.1fs  %s\n", time.Since(p.begin).Seconds(), fmt.Sprintf(format, args...))
}

// Begin implements View.
func (p *Plain) Begin(s *script.Script) {
	p.begin = time.Now()
	fmt.Fprintf(p.Out, "%s: %s\n\n", strings.TrimSuffix(s.Name, ".txtar"), s.Story)
	p.line("starting the clusters")
}

// Up implements View.
func (p *Plain) Up(live *Live) {
	p.live = live
	for _, c := range live.Lab.Topology.Clusters {
		p.line("cluster %s is up: nodes %s", c.Name, strings.Join(c.Nodes, " "))
	}
}

// Event implements View.
func (p *Plain) Event(e script.Event) {
	switch e.Kind {
	case script.SectionBegins:
		p.line("")
		p.line("# %s", e.Section)
	case script.RoundBegins:
		p.line("  round %d of %d", e.Round, e.Rounds)
	case script.LineEnds:
		took := ""
		if e.Took >= 100*time.Millisecond {
			took = fmt.Sprintf("  [%.1fs]", e.Took.Seconds())
		}
		mark := ""
		if e.Err != nil {
			mark = "FAILED  "
		}
		p.line("  %s%s%s%s", mark, prefix(e.Line), e.Text, took)
	}
}

// prefix shows what a line expects and whether it is retried.
func prefix(l *script.Line) string {
	text := ""
	if l.Retry > 0 {
		text = "* "
	}
	switch l.Want {
	case script.Failure:
		text += "! "
	case script.Either:
		text += "? "
	}
	return text
}

// Say implements View.
func (p *Plain) Say(line string) { p.line("    │ %s", line) }

// Down implements View.
func (p *Plain) Down() {}

// End implements View.
func (p *Plain) End(r Result) {
	fmt.Fprintln(p.Out)
	if p.live != nil {
		for _, line := range p.live.Figures.Lines() {
			fmt.Fprintf(p.Out, "  %s\n", line)
		}
	}
	if r.OK {
		fmt.Fprintf(p.Out, "ok    %s (%.1f s)\n", r.Scenario, r.Seconds)
		return
	}
	fmt.Fprintf(p.Out, "FAIL  %s (%.1f s)\n%s\n", r.Scenario, r.Seconds, r.Error)
}
