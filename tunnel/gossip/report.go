package gossip

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Members of the pool cannot be told apart: each has every key and can claim to be
// anybody. So a report counts only with a signature that only the cluster that it is
// about can make, and only for ReportLife, so that nobody can replay it later.

const (
	// reportRefresh is how often a reporter repeats its last report.
	reportRefresh = 5 * time.Minute
	// ReportLife is how long a report counts. It allows for two missed refreshes, or
	// for a reporter's clock that is 10 min behind ours or 15 min ahead.
	ReportLife = 3 * reportRefresh
	// warnAgain is the pause between two warnings of ignored reports about one peer,
	// which anybody in the pool can cause.
	warnAgain = time.Hour
	// maxDead and maxReporters bound what we remember for a cluster.
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

// judge reports whether a report is news, given the last one of the same reporter. An
// error says why it does not count anyway. It does not check the signature.
func judge(known, r Report, now time.Time) (news bool, err error) {
	switch age := now.Sub(r.Made()); {
	case r.Reporter == "" || len(r.Reporter) > maxName || strings.Contains(r.Reporter, "/"):
		return false, fmt.Errorf("reporter %.64q is not a valid member name", r.Reporter)
	case len(r.Dead) > maxDead:
		return false, fmt.Errorf("it names %d nodes, more than %d", len(r.Dead), maxDead)
	case age > ReportLife:
		return false, fmt.Errorf("it is %v old: compare the clocks", age.Round(time.Second))
	case age < -ReportLife:
		return false, fmt.Errorf("it is from %v ahead of our clock: compare the two", -age.Round(time.Second))
	}
	return r.Sequence > known.Sequence, nil
}
