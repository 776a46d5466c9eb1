package flow

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
)

// Request is what a reader asks of a stream; it means the same in GET /v1/observe and in
// `weft observe`.
type Request struct {
	// Follow continues with the flows that come after Last.
	Follow bool
	// Last is how many of the kept flows that match come first; below 0 means all.
	Last   int
	Filter Filter
	// Not excludes the flows that any of these filters matches.
	Not []Filter
}

// Match reports whether the request asks for a flow.
func (r *Request) Match(f *Flow) bool {
	return r.Filter.Match(f) && !slices.ContainsFunc(r.Not, func(not Filter) bool { return not.Match(f) })
}

// ParseRequest reads query parameters: follow (true, the default if empty, or false),
// last (a number, 0 by default), not (a filter as a query of its own, such as
// verdict=DROPPED; may be repeated) and those of ParseFilter.
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

// Values returns the request as query parameters; ParseRequest reads them back.
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
