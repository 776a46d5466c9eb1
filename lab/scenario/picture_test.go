package scenario

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/lab/script"
)

const dropLine = "DROPPED   Jan  2 15:04:05.000 east/default/intruder:60796 -> west/default/web-1:80 ingress policy-denied " +
	"not allowed by default/only-frontend (CiliumNetworkPolicy) via default/web:80 (TCP Flags: SYN) (ID:109547 -> ID:164160) [west/n1]"

func demoPicture() picture {
	p := picture{
		title: "\x1b[1mweft lab\x1b[0m\x1b[2m  31 s\x1b[0m", section: "\x1b[1m▸ A policy lets the frontend of east in, and nobody else\x1b[0m",
		story: "A service in two clusters outlives one of them; who may call it is decided by identity, and pods' traffic is on the wire only inside WireGuard.",
		live: []string{"  east       ● n1  ● n2   ── wan", "  west       ● n1  ● n2   ── wan",
			"  east/client → http://web   east \x1b[32m██████████\x1b[0m 50/s west \x1b[32m██████████\x1b[0m 50/s\x1b[31m  1 failed (refused)\x1b[0m",
			"  wire: 4711 packets, 4000 of tunnels, \x1b[32m0 in the clear\x1b[0m"},
		doing: "\x1b[33m… load steady client\x1b[0m",
	}
	for i := range watchSaid - 2 {
		p.said = append(p.said, "\x1b[36m│ \x1b[0m"+strings.Replace(dropLine, "DROPPED  ", "FORWARDED", 1)+" old "+strconv.Itoa(i))
	}
	p.said = append(p.said, "\x1b[36m│ \x1b[0m"+dropLine, "\x1b[36m│ \x1b[0m"+dropLine)
	for i := range watchSteps {
		p.steps = append(p.steps, "✓ *10s weft -c all observe --verdict DROPPED --from-pod default/intruder --last 2 # "+strconv.Itoa(i))
	}
	return p
}

// Whatever the size, no line is wider than the terminal, and what was drawn last
// can be drawn again.
func TestPictureFits(t *testing.T) {
	for _, columns := range []int{1, 2, 7, 13, 20, 40, 79, 80, 81, 120, 300} {
		for _, rows := range []int{1, 2, 5, 12, 24, 25, 50, 100} {
			lines := demoPicture().lines(columns, rows)
			if len(lines) == 0 || len(lines) > max(rows-1, 1) {
				t.Errorf("%dx%d: %d lines", columns, rows, len(lines))
			}
			for _, line := range lines {
				if n := len(cells(line)); n > max(columns-1, 1) {
					t.Errorf("%dx%d: %d columns: %q", columns, rows, n, line)
				}
				if cs := strings.LastIndex(line, "\x1b["); cs >= 0 && !strings.HasPrefix(line[cs:], plainStyle) {
					t.Errorf("%dx%d: a colour reaches beyond %q", columns, rows, line)
				}
			}
		}
	}
}

// The demo's point is on an ordinary terminal: what happened, and why.
func TestPictureAt80x24(t *testing.T) {
	text := strings.Join(demoPicture().lines(80, 24), "\n")
	for _, want := range []string{"weft lab", "▸ A policy", "● n1", "0 in the clear", "DROPPED   Jan", "not allowed by", "default/only-frontend", "[west/n1]", "# 5", "… load steady"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if !strings.Contains(strings.Join(demoPicture().lines(200, 60), "\n"), "A service in two clusters") {
		t.Error("the story is missing though there is room")
	}
}

func TestFold(t *testing.T) {
	for _, tt := range []struct {
		line    string
		columns int
		indent  string
		want    []string
	}{
		{"", 10, "", []string{""}},
		{"just right", 10, "", []string{"just right"}},
		{"who may call it is decided", 10, "", []string{"who may", "call it is", "decided"}},
		{"who may call it", 9, "  ", []string{"who may", "  call it"}},
		{"a  b   c", 8, "", []string{"a  b   c"}},
		{"nowhere to break", 5, "", []string{"nowhe", "re to", "break"}},
		{"too narrow", 3, "  ", []string{"too", "nar", "row"}},
		{"\x1b[31mred and\x1b[0m not", 5, "", []string{"\x1b[31mred\x1b[0m", "\x1b[31mand\x1b[0m", "not"}},
		{"blanks at the end    ", 17, "", []string{"blanks at the end"}},
	} {
		if got := fold(tt.line, tt.columns, tt.indent); !slices.Equal(got, tt.want) {
			t.Errorf("fold(%q, %d) = %q, want %q", tt.line, tt.columns, got, tt.want)
		}
	}
}

// On a terminal of another size the last picture may stand anywhere: the screen is
// cleared, not the lines above the cursor.
func TestResize(t *testing.T) {
	s, err := script.Parse("story.txtar", []byte("# A story.\n\n# Part one\n* ! fail\n"))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	columns := 80
	w := NewWatch(&out, func() (int, int) { return columns, 24 }, false)
	w.story, w.section = s.Story, "Part one"
	drawn := func() string {
		out.Reset()
		w.draw()
		return out.String()
	}
	const clear = "\x1b[H\x1b[2J"
	if got := drawn(); strings.Contains(got, clear) || !strings.Contains(got, "Part one") {
		t.Errorf("the first picture: %q", got)
	}
	if got := drawn(); !strings.HasPrefix(got, "\x1b[5A") {
		t.Errorf("the same size: %q", got)
	}
	columns = 8
	if got := drawn(); !strings.HasPrefix(got, clear) || !strings.Contains(got, "▸ Part\n") {
		t.Errorf("another size: %q", got)
	}
	if got := drawn(); strings.Contains(got, clear) {
		t.Errorf("the new size again: %q", got)
	}
}
