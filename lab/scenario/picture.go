package scenario

import (
	"slices"
	"strings"
)

// picture is what Watch draws; each part is lines of any length, oldest first.
type picture struct {
	title, story, section, doing string
	live, said, steps            []string
}

// lines lays out the picture for a terminal. No line is truncated, and there are fewer
// lines than rows, because what has scrolled off the top cannot be redrawn. If there
// are too many lines, the story goes first, then the oldest steps, then the oldest
// lines of what was said.
func (p picture) lines(columns, rows int) []string {
	columns = max(columns-1, 1) // a full line moves some terminals to the next one
	room := max(rows-1, 1)
	block := func(lead, indent string, lines []string) (out [][]string) {
		for _, line := range lines {
			out = append(out, fold(lead+line, columns, indent))
		}
		return out
	}
	story := fold(p.story, columns, "")
	said, steps := block("  ", "      ", p.said), block("  ", "      ", p.steps)
	layout := func() []string {
		out := append(fold(p.title, columns, ""), story...)
		out = append(append(out, ""), fold(p.section, columns, "  ")...)
		out = append(out, "")
		if len(p.live) > 0 {
			out = append(append(out, slices.Concat(block("", "    ", p.live)...)...), "")
		}
		out = append(append(out, slices.Concat(said...)...), slices.Concat(steps...)...)
		if p.doing != "" {
			out = append(out, fold("  "+p.doing, columns, "      ")...)
		}
		return out
	}
	for {
		out := layout()
		switch {
		case len(out) <= room:
			return out
		case len(story) > 0:
			story = nil
		case len(steps) > 2:
			steps = steps[1:]
		case len(said) > 1:
			said = said[1:]
		case len(steps) > 0:
			steps = steps[1:]
		default:
			return out[len(out)-room:]
		}
	}
}

// cell is a character on a terminal, in the style set by an escape sequence.
type cell struct {
	style string
	text  rune
}

// fold breaks a line into lines of at most so many columns, at blanks if possible; all
// but the first are indented. Escape sequences take no columns, and none extends
// beyond its line.
func fold(line string, columns int, indent string) []string {
	if 2*len(indent) > columns {
		indent = ""
	}
	var out []string
	lead, rest := "", cells(line)
	for {
		room := columns - len(lead)
		if len(rest) <= room {
			return append(out, lead+styled(rest))
		}
		end := room
		for i := room; i > room/2; i-- {
			if rest[i].text == ' ' {
				end = i
				break
			}
		}
		out = append(out, lead+styled(trimRight(rest[:end])))
		for rest = rest[end:]; len(rest) > 0 && rest[0].text == ' '; {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			return out
		}
		lead = indent
	}
}

func trimRight(cs []cell) []cell {
	for len(cs) > 0 && cs[len(cs)-1].text == ' ' {
		cs = cs[:len(cs)-1]
	}
	return cs
}

const plainStyle = "\x1b[0m"

func cells(line string) (out []cell) {
	style, escape := "", ""
	for _, r := range line {
		switch {
		case r == '\x1b':
			escape = string(r)
		case escape != "":
			if escape += string(r); r == 'm' {
				style, escape = escape, ""
			}
			if style == plainStyle {
				style = ""
			}
		default:
			out = append(out, cell{style, r})
		}
	}
	return out
}

func styled(cs []cell) string {
	var b strings.Builder
	style := ""
	change := func(next string) {
		if next == style {
			return
		}
		if style != "" {
			b.WriteString(plainStyle)
		}
		b.WriteString(next)
		style = next
	}
	for _, c := range cs {
		change(c.style)
		b.WriteRune(c.text)
	}
	change("")
	return b.String()
}
