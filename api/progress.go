package api

import (
	"context"
	"fmt"
	"net/http/httptrace"
	"net/textproto"
)

// ProgressHeader is a header of informational responses (status 102) that come before the
// answer to a large change. Its value is a Progress.
const ProgressHeader = "Weft-Progress"

// Progress is how far a large change is: it is committed, and of its writes so many are
// made.
type Progress struct{ Made, Of int }

// String is the form in the header.
func (p Progress) String() string { return fmt.Sprintf("%d/%d", p.Made, p.Of) }

// WithProgress returns a context whose requests call each with the progress of a large
// change. The calls come one by one, from another goroutine than the request's.
func WithProgress(ctx context.Context, each func(Progress)) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(_ int, header textproto.MIMEHeader) error {
		var p Progress
		if n, _ := fmt.Sscanf(header.Get(ProgressHeader), "%d/%d", &p.Made, &p.Of); n == 2 {
			each(p)
		}
		return nil
	}})
}
