package scenario

import (
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/weft-mesh/weft/lab/script"
	"github.com/weft-mesh/weft/lab/traffic"
)

// Watch shows a run as a picture that is redrawn in place on a terminal: the clusters
// and their links, where requests go, what the wire carries, and the last steps.
type Watch struct {
	out   io.Writer
	size  func() (columns, rows int)
	color bool

	mu      sync.Mutex
	begin   time.Time // guarded by mu, like what follows
	story   string
	section string
	steps   []string
	said    []string
	doing   string
	live    *Live
	drawn   int    // lines of the last picture
	drawnIn [2]int // columns and rows of the terminal then

	quit chan struct{}
	done chan struct{}
	once sync.Once
}

// How many lines of the picture's changing parts are kept.
const (
	watchSteps = 6
	watchSaid  = 6
)

// redraw is the pause between two pictures.
const redraw = 125 * time.Millisecond

// NewWatch makes a View for a terminal of the given size. It redraws at a steady pace
// from Begin to End, and at once when the terminal is resized.
func NewWatch(out io.Writer, size func() (columns, rows int), color bool) *Watch {
	return &Watch{out: out, size: size, color: color, quit: make(chan struct{}), done: make(chan struct{})}
}

// Begin implements View.
func (w *Watch) Begin(s *script.Script) {
	w.mu.Lock()
	w.begin, w.story, w.section = time.Now(), s.Story, "starting the clusters"
	w.mu.Unlock()
	fmt.Fprint(w.out, "\x1b[?25l")
	go w.loop()
}

func (w *Watch) loop() {
	defer close(w.done)
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	for {
		w.draw()
		select {
		case <-tick.C:
		case <-resized:
		case <-w.quit:
			return
		}
	}
}

// Up implements View.
func (w *Watch) Up(live *Live) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.live = live
}

// Event implements View.
func (w *Watch) Event(e script.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch e.Kind {
	case script.SectionBegins:
		w.section = e.Section
	case script.RoundBegins:
		w.doing = fmt.Sprintf("round %d of %d", e.Round, e.Rounds)
	case script.LineBegins:
		w.doing = prefix(e.Line) + e.Text
	case script.LineEnds:
		mark := w.paint(green, "✓")
		if e.Err != nil {
			mark = w.paint(red, "✗")
		}
		w.steps = append(w.steps, fmt.Sprintf("%s %s%s", mark, prefix(e.Line), e.Text))
		w.steps = w.steps[max(0, len(w.steps)-watchSteps):]
		w.doing = ""
	}
}

// Say implements View.
func (w *Watch) Say(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, line)
	w.said = w.said[max(0, len(w.said)-watchSaid):]
}

// Down implements View. It leaves the last picture on the screen.
func (w *Watch) Down() { w.stop() }

func (w *Watch) stop() {
	w.mu.Lock()
	begun := !w.begin.IsZero()
	w.mu.Unlock()
	if !begun {
		return
	}
	w.once.Do(func() {
		close(w.quit)
		<-w.done
		w.draw()
		fmt.Fprint(w.out, "\x1b[?25h")
	})
}

// End implements View. It prints the summary below the last picture.
func (w *Watch) End(r Result) {
	w.stop()
	p := &Plain{Out: w.out, live: w.live}
	p.End(r)
}

const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

func (w *Watch) paint(code, text string) string {
	if !w.color {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (w *Watch) draw() {
	w.mu.Lock()
	defer w.mu.Unlock()
	columns, rows := w.size()
	lines := w.picture().lines(columns, rows)
	var b strings.Builder
	switch size := [2]int{columns, rows}; {
	case w.drawn == 0:
	case size != w.drawnIn:
		// The terminal may have rewrapped the last picture, so its first line cannot be
		// found.
		b.WriteString("\x1b[H\x1b[2J")
	default:
		fmt.Fprintf(&b, "\x1b[%dA", w.drawn)
	}
	for _, line := range lines {
		b.WriteString("\x1b[2K" + line + "\n")
	}
	b.WriteString("\x1b[J")
	io.WriteString(w.out, b.String())
	w.drawn, w.drawnIn = len(lines), [2]int{columns, rows}
}

func (w *Watch) picture() picture {
	p := picture{
		title: w.paint(bold, "weft lab") + w.paint(dim, fmt.Sprintf("  %.0f s", time.Since(w.begin).Seconds())),
		story: w.story, section: w.paint(bold, "▸ "+w.section), steps: w.steps,
	}
	if w.live != nil {
		p.live = append(w.clusters(), w.traffic()...)
	}
	for _, line := range w.said {
		p.said = append(p.said, w.paint(cyan, "│ ")+line)
	}
	if w.doing != "" {
		p.doing = w.paint(yellow, "… "+w.doing)
	}
	return p
}

// clusters is a line per cluster: its uplink and its machines.
func (w *Watch) clusters() (lines []string) {
	l := w.live.Lab
	weather := l.Network.Weather()
	for _, c := range l.Topology.Clusters {
		link := w.paint(green, "── wan")
		if weather.Off[c.Name] {
			link = w.paint(red, "─╳ wan")
		}
		var nodes []string
		for _, name := range c.Nodes {
			n, err := l.Node(c.Name + "/" + name)
			switch {
			case err != nil:
			case !n.Powered():
				nodes = append(nodes, w.paint(red, "✗ "+name+" no power"))
			case !l.Network.Fabric(c.Name).Up(name):
				nodes = append(nodes, w.paint(red, "╳ "+name+" cut"))
			default:
				nodes = append(nodes, w.paint(green, "● ")+name)
			}
		}
		lines = append(lines, fmt.Sprintf("  %-10s %s   %s", c.Name, strings.Join(nodes, "  "), link))
	}
	return append(lines, w.partial()...)
}

// partial names what is cut between two clusters.
func (w *Watch) partial() (lines []string) {
	weather := w.live.Lab.Network.Weather()
	for _, a := range w.live.Lab.Topology.Clusters {
		for _, b := range w.live.Lab.Topology.Clusters {
			q := weather.Between(a.Name, b.Name)
			if a.Name >= b.Name || weather.Off[a.Name] || weather.Off[b.Name] {
				continue
			}
			if q.Cut {
				lines = append(lines, w.paint(red, fmt.Sprintf("  %s ─╳─ %s", a.Name, b.Name)))
			} else if len(q.Flows) > 0 {
				lines = append(lines, w.paint(yellow, fmt.Sprintf("  %s ─╳─ %s  %d flows are cut, the rest pass", a.Name, b.Name, len(q.Flows))))
			}
		}
	}
	return lines
}

// traffic is a line per load, about its last second, and one per capture.
func (w *Watch) traffic() (lines []string) {
	w.live.mu.Lock()
	loads, captures := maps.Clone(w.live.loads), maps.Clone(w.live.captures)
	w.live.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(loads)) {
		l := loads[name]
		if !l.task.Running() {
			continue
		}
		t := traffic.Count(l.all(time.Now().Add(-time.Second)))
		line := fmt.Sprintf("  %s → %s  ", l.from, l.target)
		for _, cluster := range slices.Sorted(maps.Keys(t.ByCluster)) {
			share := t.ByCluster[cluster] * 20 / max(1, t.Requests)
			line += fmt.Sprintf(" %s %s %d/s", cluster, w.paint(green, strings.Repeat("█", share)), t.ByCluster[cluster])
		}
		if t.Failed > 0 {
			line += w.paint(red, fmt.Sprintf("  %d failed%s", t.Failed, reasons(t)))
		}
		lines = append(lines, line)
	}
	for _, name := range slices.Sorted(maps.Keys(captures)) {
		f, err := captures[name].Findings()
		verdict := w.paint(green, "0 in the clear")
		switch {
		case err != nil:
			verdict = w.paint(red, err.Error())
		case f.Marked+f.Exposed > 0:
			verdict = w.paint(red, fmt.Sprintf("%d in the clear", f.Marked+f.Exposed))
		case f.Missed > 0:
			verdict = w.paint(red, fmt.Sprintf("%d not examined", f.Missed))
		}
		lines = append(lines, fmt.Sprintf("  wire: %d packets, %d of tunnels, %s", f.Packets, f.Encrypted, verdict))
	}
	return lines
}
