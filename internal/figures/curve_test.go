package figures

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
)

// elements reads an SVG and returns its elements by name, each with its attributes and
// text. It fails if the SVG is not well-formed.
func elements(t *testing.T, svg []byte) (all map[string][]map[string]string) {
	t.Helper()
	all = map[string][]map[string]string{}
	var open []map[string]string
	d := xml.NewDecoder(strings.NewReader(string(svg)))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
		switch e := token.(type) {
		case xml.StartElement:
			attrs := map[string]string{}
			for _, a := range e.Attr {
				attrs[a.Name.Local] = a.Value
			}
			all[e.Name.Local] = append(all[e.Name.Local], attrs)
			open = append(open, attrs)
		case xml.EndElement:
			open = open[:len(open)-1]
		case xml.CharData:
			if len(open) > 0 {
				open[len(open)-1]["text"] += string(e)
			}
		}
	}
}

func TestDraw(t *testing.T) {
	panels := []Panel{
		{Title: "one change <agent>", Unit: "ms", Target: 1, Lines: []Line{
			{"address", []Point{{10, 0.5}, {50, 1}, {250, 2}}},
			{"node", []Point{{10, 1}, {250, 1}}},
		}},
		{Title: "nothing measured", Lines: []Line{{"x", nil}}},
		{Title: "memory", Unit: "B", Lines: []Line{{"", []Point{{10, 300}}}}},
	}
	svg := Draw("Mesh", "clusters", panels)
	all := elements(t, svg)
	if n := len(all["g"]); n != 2 {
		t.Errorf("%d panels, want the two with points", n)
	}
	if n := len(all["circle"]); n != 6 {
		t.Errorf("%d points, want 6", n)
	}
	circles := all["circle"]
	// 50 is on a logarithmic axis in the middle of 10 and 250; a value twice as high is
	// twice as far from the bottom.
	if circles[1]["cx"] != fmt.Sprintf("%.1f", (left+width-right)/2.0) {
		t.Errorf("50 of 10 to 250 clusters is drawn at %s", circles[1]["cx"])
	}
	far := func(i int) float64 {
		var y float64
		fmt.Sscan(circles[i]["cy"], &y)
		return height - bottom - y
	}
	if got := far(2) / far(1); math.Abs(got-2) > 0.01 {
		t.Errorf("2 ms is drawn %v times as high as 1 ms", got)
	}
	target := slices.IndexFunc(all["line"], func(a map[string]string) bool { return a["class"] == "target" })
	if target < 0 || all["line"][target]["y1"] != circles[1]["cy"] {
		t.Error("the target of 1 ms is not drawn where 1 ms is")
	}
	if !strings.Contains(string(svg), "one change &lt;agent&gt;") || strings.Contains(string(svg), "nothing measured") {
		t.Error("titles are not as given")
	}
	if again := Draw("Mesh", "clusters", panels); string(again) != string(svg) {
		t.Error("the same panels are drawn differently")
	}
}

func TestAxes(t *testing.T) {
	for name, c := range map[string]struct {
		low, high float64
		ticks     []float64
	}{
		"from zero":        {40, 100, []float64{0, 25, 50, 75, 100}},
		"a small value":    {0.4, 0.6, []float64{0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6}},
		"orders apart":     {0.5, 400, []float64{0.1, 1, 10, 100, 1000}},
		"nothing but zero": {math.Inf(1), 0, []float64{0}},
	} {
		up, ticks := vertical(c.low, c.high)
		same := slices.EqualFunc(ticks, c.ticks, func(a, b float64) bool { return math.Abs(a-b) < 1e-9 })
		if !same {
			t.Errorf("%s: marks at %v, want %v", name, ticks, c.ticks)
		}
		for _, v := range []float64{0, c.high} {
			if y := up(v); y < top-0.5 || y > height-bottom+0.5 {
				t.Errorf("%s: %v is drawn at %v, outside of the panel", name, v, y)
			}
		}
	}
}

func TestNumbersAreShort(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.0512: "0.0512", 1.23456: "1.23", 250: "250", 1234: "1230", 12000: "12k", 250000: "250k", 3e6: "3M", 2.5e9: "2.5G", -40: "-40"} {
		if got := number(v); got != want {
			t.Errorf("%v is written %s, want %s", v, got, want)
		}
	}
}
