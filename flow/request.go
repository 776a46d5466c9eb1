package flow

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
)

// Request is what a reader asks of a stream: GET /v1/observe and
// `weft observe` mean it the same way.
type Request struct {
	// Follow goes on with what comes after Last.
	Follow bool
	// Last is how many matching flows that are kept come first; below 0: all.
	Last   int
	Filter Filter
	// Not are filters that leave flows out: those that any of them matches.
	Not []Filter
}

// Match tells whether a flow is asked for.
func (r *Request) Match(f *Flow) bool {
	return r.Filter.Match(f) && !slices.ContainsFunc(r.Not, func(not Filter) bool { return not.Match(f) })
}

// ParseRequest reads query parameters: follow (true, false), last (a number,
// 0 without it), not (a filter as a query of its own, such as verdict=DROPPED;
// repeated for several) and those of ParseFilter. An empty follow means true.
func ParseRequest(query url.Values) (Request, error) {
	query = maps.Clone(query)
	var r Request
	if query.Has("follow") {
		text := query.Get("follow")
		follow, err := strconv.ParseBool(text)
		if err != nil && text != "" {
			return Request{}, fmt.Errorf("follow is true or false, not %q", text)
		}
		r.Follow = follow || text == ""
	}
	if text := query.Get("last"); text != "" {
		last, err := strconv.Atoi(text)
		if err != nil {
			return Request{}, fmt.Errorf("last is a number of flows, not %q", text)
		}
		r.Last = last
	}
	for _, text := range query["not"] {
		part, err := url.ParseQuery(text)
		if err != nil || len(part) == 0 {
			return Request{}, fmt.Errorf("not is a filter such as verdict=FORWARDED, not %q", text)
		}
		not, err := ParseFilter(part)
		if err != nil {
			return Request{}, fmt.Errorf("not %w", err)
		}
		r.Not = append(r.Not, not)
	}
	query.Del("follow")
	query.Del("last")
	query.Del("not")
	var err error
	r.Filter, err = ParseFilter(query)
	if err != nil {
		return Request{}, err
	}
	return r, nil
}

// Values is the request as query parameters; ParseRequest reads it back.
func (r *Request) Values() url.Values {
	q := r.Filter.Values()
	q.Set("last", strconv.Itoa(r.Last))
	for _, not := range r.Not {
		q.Add("not", not.Values().Encode())
	}
	if r.Follow {
		q.Set("follow", "true")
	}
	return q
}
