package api

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Concern is a difference between wanted and actual state. `weft status` prints it as a
// line, and -o json its parts.
type Concern struct {
	Cluster string `json:"cluster"` // whose API server reports it
	// Object is what it is about, as people name it: "node e2", "peer west",
	// "path e1 → west/w1", "service default/web", "store".
	Object string `json:"object"`
	// Node is the node that has it; "" if it concerns no single node.
	Node string `json:"node,omitempty"`
	// Reason is one word in CamelCase for alerts to select by. It does not depend on the
	// details.
	Reason string `json:"reason"`
	// Message is a sentence without a full stop that names the object and the cause. {age}
	// in it is replaced with the age; without {age}, the age follows in parentheses.
	Message string `json:"message"`
	// Next is what to do, as an imperative.
	Next string `json:"next,omitempty"`
	// Since is when it began. Whoever makes a concern leaves it zero if only a
	// look tells that it is so: the API server remembers when it first saw it.
	// AgeSeconds is its age now.
	Since      time.Time `json:"since,omitzero"`
	AgeSeconds float64   `json:"ageSeconds,omitempty"`
	// Grace is how long it may last before it is reported; 0 means ConcernGrace. Dated
	// means that the message already gives the age that matters.
	Grace time.Duration `json:"-"`
	Dated bool          `json:"-"`
	// Part tells concerns of one object, node and reason apart, such as the ports
	// of a service. Unlike Message it stays the same while the concern lasts.
	Part string `json:"-"`
}

// ConcernGrace is how long wanted and actual state may differ by default: as long as a
// start, a restart or a change needs.
const ConcernGrace = 3 * time.Second

// String is the line that people read.
func (c Concern) String() string {
	switch {
	case c.Next == "":
		return c.Message
	case strings.Contains(c.Message, ": "):
		return c.Message + "; " + c.Next
	}
	return c.Message + ": " + c.Next
}

// Advice splits a text into the cause and what to do about it, which follows the last
// semicolon; next is "" if there is none.
func Advice(text string) (cause, next string) {
	i := strings.LastIndex(text, "; ")
	if i < 0 {
		return text, ""
	}
	return text[:i], text[i+2:]
}

// ageMark is replaced with the age in messages.
const ageMark = "{age}"

// Judge adds the ages to concerns and separates those that have lasted too long from those
// that may still settle. Both lists are ordered by object.
func Judge(now time.Time, all []Concern) (concerns, settling []Concern) {
	for _, c := range all {
		var old time.Duration
		if !c.Since.IsZero() {
			old = max(0, now.Sub(c.Since))
			c.AgeSeconds = old.Seconds()
		}
		switch {
		case strings.Contains(c.Message, ageMark):
			c.Message = strings.ReplaceAll(c.Message, ageMark, Words(old))
		case !c.Since.IsZero() && !c.Dated:
			c.Message += " (" + Words(old) + ")"
		}
		if !c.Since.IsZero() && old < cmp.Or(c.Grace, ConcernGrace) {
			settling = append(settling, c)
		} else {
			concerns = append(concerns, c)
		}
	}
	for _, list := range [][]Concern{concerns, settling} {
		slices.SortStableFunc(list, func(a, b Concern) int {
			return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Object, b.Object))
		})
	}
	return concerns, settling
}

// Words formats an age for a sentence: "23 s", "4 min", "3 h", "12 d".
func Words(a time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case a < 2*time.Minute:
		return fmt.Sprintf("%d s", max(0, a)/time.Second)
	case a < 2*time.Hour:
		return fmt.Sprintf("%d min", a/time.Minute)
	case a < 2*day:
		return fmt.Sprintf("%d h", a/time.Hour)
	}
	return fmt.Sprintf("%d d", a/day)
}

// Count is a number of things: "1 pod", "2 policies". It is given the singular.
func Count[N int | int64 | uint64](n N, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	if stem, ok := strings.CutSuffix(thing, "y"); ok {
		return fmt.Sprintf("%d %sies", n, stem)
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
