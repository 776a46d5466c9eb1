package kubernetes

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-mesh/weft/apiserver/registry"
)

const (
	// Kubernetes keeps an event for an hour. One that still holds is told again a little
	// before.
	tellAgain = 50 * time.Minute
	// mostReports wait to be told; others are told later, if they still hold.
	mostReports = 500
	// reportPause is the pause between two events: a mistake in a thousand objects is not
	// a burst of a thousand requests.
	reportPause = 200 * time.Millisecond
	// longestNote is what Kubernetes takes of a message, in bytes.
	longestNote = 1024
)

// reports tells people of Kubernetes what is wrong with their objects, by events.
type reports struct {
	from string

	mu     sync.Mutex // guards what follows
	queue  []report
	told   map[told]time.Time
	signal chan struct{}
}

// report is an event that is to be written.
type report struct {
	of  *resource
	ref registry.Ref
	uid string
	trouble
}

// told tells equal events apart from others.
type told struct{ uid, message string }

func newReports(from string) *reports {
	return &reports{from: from, told: map[told]time.Time{}, signal: make(chan struct{}, 1)}
}

// tell has an event written, unless it was a short while ago.
func (r *reports) tell(kind *resource, ref registry.Ref, uid string, t trouble) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id, now := told{uid, t.message}, time.Now()
	if uid == "" || len(r.queue) >= mostReports || now.Sub(r.told[id]) < tellAgain {
		return
	}
	if len(r.told) > 10*mostReports {
		for old, at := range r.told {
			if now.Sub(at) >= tellAgain {
				delete(r.told, old)
			}
		}
	}
	r.told[id] = now
	r.queue = append(r.queue, report{kind, ref, uid, t})
	signal(r.signal)
}

// next takes the first report out of the queue.
func (r *reports) next() (report, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.queue) == 0 {
		return report{}, false
	}
	first := r.queue[0]
	if r.queue = r.queue[1:]; len(r.queue) == 0 {
		r.queue = nil
	}
	return first, true
}

// forget has a report told again when it is due the next time.
func (r *reports) forget(p report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.told, told{p.uid, p.message})
}

// run writes the events until ctx ends.
func (r *reports) run(ctx context.Context, c *client) error {
	for {
		p, ok := r.next()
		if !ok {
			select {
			case <-ctx.Done():
				return nil
			case <-r.signal:
			}
			continue
		}
		if err := c.event(ctx, r.from, p); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
			r.forget(p)
		}
		if !sleep(ctx, reportPause) {
			return nil
		}
	}
}

// event writes an event about an object.
func (c *client) event(ctx context.Context, from string, p report) error {
	namespace := p.ref.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	reason, message := "NotApplied", "Weft does not apply this "+p.of.kind+": "+p.message
	if p.partly {
		reason, message = "AppliedInPart", "Weft applies this "+p.of.kind+" in part: "+p.message
	}
	if len(message) > longestNote {
		message = message[:longestNote-len("…")] + "…"
	}
	now := metav1.Now()
	// Of equal names, the second is refused: two API servers tell nothing twice within the hour.
	sum := sha256.Sum256([]byte(p.uid + message + now.UTC().Truncate(tellAgain).String()))
	ev := &corev1.Event{
		TypeMeta:       metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Name: "weft." + hex.EncodeToString(sum[:8])},
		InvolvedObject: corev1.ObjectReference{APIVersion: p.of.group.String(), Kind: p.of.kind, Namespace: p.ref.Namespace, Name: p.ref.Name, UID: types.UID(p.uid)},
		Reason:         reason, Message: message, Type: corev1.EventTypeWarning,
		Source:         corev1.EventSource{Component: "weft"},
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
		ReportingController: "weft.io/apiserver", ReportingInstance: from,
	}
	text, err := json.Marshal(ev)
	if err != nil {
		return err
	}
	err = c.core.Post().Namespace(namespace).Resource("events").SetHeader("Content-Type", "application/json").Body(text).Do(ctx).Error()
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}
