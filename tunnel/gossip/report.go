package gossip

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// In the pool itself members cannot be told apart: each holds every key and
// says of itself what it likes. So a report counts by its signature, which only
// the cluster that it is about can make, and for ReportLife, so that whoever
// passes it on cannot bring it up again later.

const (
	// reportRefresh is how often a reporter says again what it said last.
	reportRefresh = 5 * time.Minute
	// ReportLife is how long a report counts. What is left of it after one
	// refresh, 10 min, may be two missed refreshes or a reporter's clock that is
	// behind ours; one may be ahead by all of it.
	ReportLife = 3 * reportRefresh
	// warnAgain is the pause between two warnings of reports of one peer that do
	// not count. Anybody in the pool can cause them.
	warnAgain = time.Hour
	// maxDead and maxReporters bound what a cluster can make us remember.
	maxDead      = 5000
	maxReporters = 8
)

// Made is when the report was made, by its reporter's clock.
func (r Report) Made() time.Time { return time.Unix(0, int64(r.Sequence)) }

// text is what is signed.
func (r Report) text() []byte {
	r.Signature = nil
	text, err := json.Marshal(r)
	if err != nil {
		return nil // cannot be: strings and numbers
	}
	return text
}

// judge says whether a report is news, given what is known of the same reporter.
// An error says why it would not count even if it were; its signature is not
// looked at.
func judge(known, r Report, now time.Time) (news bool, err error) {
	switch age := now.Sub(r.Made()); {
	case r.Reporter == "" || len(r.Reporter) > maxName || strings.Contains(r.Reporter, "/"):
		return false, fmt.Errorf("reporter %.64q is no member's name", r.Reporter)
	case len(r.Dead) > maxDead:
		return false, fmt.Errorf("it names %d nodes, more than %d", len(r.Dead), maxDead)
	case age > ReportLife:
		return false, fmt.Errorf("it is %v old: compare the clocks", age.Round(time.Second))
	case age < -ReportLife:
		return false, fmt.Errorf("it is from %v ahead of our clock: compare the two", -age.Round(time.Second))
	}
	return r.Sequence > known.Sequence, nil
}
