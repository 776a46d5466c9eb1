package figures

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"slices"
	"strconv"
)

// Panel is one set of axes.
type Panel struct {
	Title string
	Unit  string
	// Target is drawn as a dashed line; 0: none.
	Target float64
	Lines  []Line
}

// Line is one curve.
type Line struct {
	Name   string
	Points []Point
}

// Point is one measurement.
type Point struct{ X, Y float64 }

// The size of a panel and of the space around its axes, in pixels.
const (
	columns                  = 3
	width, height            = 300, 210
	left, right, top, bottom = 58, 14, 40, 34
)

// colours of the lines of a panel, in order; readable on white and on black.
var colours = []string{"#3572b0", "#c2571a", "#3f8f4f", "#8e5bb5", "#b8860b", "#5f6b7a"}

// Draw returns an SVG with a title and panels whose X axes, in the unit x, are
// logarithmic. Panels without a point are left out.
func Draw(title, x string, panels []Panel) []byte {
	panels = slices.DeleteFunc(slices.Clone(panels), func(p Panel) bool {
		return !slices.ContainsFunc(p.Lines, func(l Line) bool { return len(l.Points) > 0 })
	})
	rows := (len(panels) + columns - 1) / columns
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", columns*width, rows*height+30)
	b.WriteString("<style>text{fill:#222}.axis{stroke:#888}.grid{stroke:#8884}.target{stroke:#d33;stroke-dasharray:5 4}.curve{fill:none;stroke-width:2}" +
		"@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>\n")
	fmt.Fprintf(&b, `<text x="10" y="20" font-size="14" font-weight="bold">%s</text>`+"\n", escape(title))
	for i, p := range panels {
		fmt.Fprintf(&b, `<g transform="translate(%d %d)">`+"\n", i%columns*width, 30+i/columns*height)
		p.draw(&b, x)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func escape(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // a buffer takes everything
	return b.String()
}

func (p Panel) draw(b *bytes.Buffer, x string) {
	var xs []float64
	high, low := p.Target, math.Inf(1)
	if p.Target > 0 {
		low = p.Target
	}
	for _, l := range p.Lines {
		for _, pt := range l.Points {
			xs = append(xs, pt.X)
			high = max(high, pt.Y)
			if pt.Y > 0 {
				low = min(low, pt.Y)
			}
		}
	}
	slices.Sort(xs)
	xs = slices.Compact(xs)
	across := logarithmic(xs[0], xs[len(xs)-1], left, width-right)
	up, ticks := vertical(low, high)

	fmt.Fprintf(b, `<text x="%d" y="16" font-weight="bold">%s</text>`+"\n", left, escape(p.Title))
	for _, t := range ticks {
		y := up(t)
		fmt.Fprintf(b, `<line class="grid" x1="%d" y1="%.1f" x2="%d" y2="%.1f"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n", left, y, width-right, y, left-5, y+4, number(t))
	}
	for _, v := range xs {
		fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", across(v), height-bottom+14, number(v))
	}
	fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end">%s</text><text x="%d" y="%d">%s</text>`+"\n", width-right, height-bottom+27, escape(x), left, 29, escape(p.Unit))
	fmt.Fprintf(b, `<path class="axis" fill="none" d="M%d %dV%dH%d"/>`+"\n", left, top, height-bottom, width-right)
	if p.Target > 0 {
		y := up(p.Target)
		fmt.Fprintf(b, `<line class="target" x1="%d" y1="%.1f" x2="%d" y2="%.1f"/>`+"\n", left, y, width-right, y)
	}
	for i, l := range p.Lines {
		if len(l.Points) == 0 {
			continue
		}
		colour := colours[i%len(colours)]
		var path bytes.Buffer
		for j, pt := range l.Points {
			verb := "L"
			if j == 0 {
				verb = "M"
			}
			fmt.Fprintf(&path, "%s%.1f %.1f", verb, across(pt.X), up(pt.Y))
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"><title>%s</title></circle>`+"\n", across(pt.X), up(pt.Y), colour, escape(fmt.Sprintf("%s %s: %s %s", number(pt.X), x, number(pt.Y), p.Unit)))
		}
		fmt.Fprintf(b, `<path class="curve" stroke="%s" d="%s"/>`+"\n", colour, path.String())
		if l.Name != "" {
			fmt.Fprintf(b, `<text x="%d" y="%d" text-anchor="end" style="fill:%s">%s</text>`+"\n", width-right, 29+12*i, colour, escape(l.Name))
		}
	}
}

// logarithmic maps from … to onto pixels.
func logarithmic(from, to, a, b float64) func(float64) float64 {
	if to <= from {
		return func(float64) float64 { return (a + b) / 2 }
	}
	return func(v float64) float64 { return a + (b-a)*math.Log(v/from)/math.Log(to/from) }
}

// wide is the ratio from which an axis is logarithmic.
const wide = 20

// vertical returns the Y axis for values from low to high, and the values to mark. It
// begins at 0 unless it is logarithmic; values below a logarithmic axis are drawn on it.
func vertical(low, high float64) (up func(float64) float64, ticks []float64) {
	const floor, ceiling = float64(height - bottom), float64(top)
	if high <= 0 {
		return func(float64) float64 { return floor }, []float64{0}
	}
	if high/low < wide {
		step := math.Pow(10, math.Floor(math.Log10(high)))
		for high/step < 3 {
			step /= 2
		}
		end := math.Ceil(high/step) * step
		for i := 0; float64(i)*step <= end*1.0001; i++ {
			ticks = append(ticks, float64(i)*step)
		}
		return func(v float64) float64 { return floor - (floor-ceiling)*v/end }, ticks
	}
	first, last := math.Floor(math.Log10(low)), math.Ceil(math.Log10(high))
	stride := math.Ceil((last - first) / 6)
	for e := first; e <= last; e += stride {
		ticks = append(ticks, math.Pow(10, e))
	}
	scale := logarithmic(math.Pow(10, first), math.Pow(10, last), floor, ceiling)
	return func(v float64) float64 { return min(floor, scale(max(v, math.Pow(10, first)))) }, ticks
}

// number writes a value briefly: 0.05, 250, 12k, 3M.
func number(v float64) string {
	for _, unit := range []struct {
		size float64
		name string
	}{{1e9, "G"}, {1e6, "M"}, {1e4, "k"}} {
		if math.Abs(v) >= unit.size {
			size := unit.size
			if unit.name == "k" {
				size = 1e3
			}
			return strconv.FormatFloat(round(v/size), 'f', -1, 64) + unit.name
		}
	}
	return strconv.FormatFloat(round(v), 'f', -1, 64)
}

// round keeps three digits.
func round(v float64) float64 {
	if v == 0 {
		return 0
	}
	scale := math.Pow(10, 2-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}
