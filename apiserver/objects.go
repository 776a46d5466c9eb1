package apiserver

import (
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/registry"
)

const (
	// manifestsAtOnce bounds the bytes of the manifests that are worked on at the same
	// time, and with them the server's memory. Others wait.
	manifestsAtOnce = registry.MaxManifestBytes
	// progressPause is the least time between two reports of progress.
	progressPause = 250 * time.Millisecond
)

// changing is answer for a function that changes objects. It tells the caller how far a
// large change is.
func (s *server) changing(f func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		caller := registry.Caller{User: callerOf(r), Progress: progress(w)}
		s.answer(f)(w, r.WithContext(registry.By(r.Context(), caller)))
	}
}

// progress returns a function that reports the progress of a change in an informational
// response. Clients that do not know them skip them.
func progress(w http.ResponseWriter) func(made, of int) {
	last := time.Now()
	return func(made, of int) {
		if time.Since(last) < progressPause {
			return
		}
		last = time.Now()
		w.Header().Set(api.ProgressHeader, api.Progress{Made: made, Of: of}.String())
		w.WriteHeader(http.StatusProcessing)
		w.Header().Del(api.ProgressHeader)
	}
}

// manifest reads the manifest in a request and passes it to f, unless others are being
// worked on that leave no room; then it waits.
func (s *server) manifest(r *http.Request, f func(text []byte, opts api.ManifestOptions) (*api.ApplyResult, error)) (any, error) {
	text, err := io.ReadAll(io.LimitReader(r.Body, registry.MaxManifestBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	if len(text) > registry.MaxManifestBytes {
		return nil, api.Refuse(http.StatusRequestEntityTooLarge, "split it into several manifests, policies first", "the manifest is larger than %d MiB, nothing was changed", registry.MaxManifestBytes>>20)
	}
	opts, err := api.ReadManifestOptions(r.URL.Query())
	if err != nil {
		return nil, err
	}
	if err := s.manifests.Acquire(r.Context(), int64(len(text))); err != nil {
		return nil, api.Refuse(http.StatusServiceUnavailable, "try again later", "the API server is busy with other manifests, nothing was changed")
	}
	defer s.manifests.Release(int64(len(text)))
	return f(text, opts)
}

func (s *server) postApply(r *http.Request) (any, error) {
	return s.manifest(r, func(text []byte, opts api.ManifestOptions) (*api.ApplyResult, error) {
		if !opts.DryRun {
			if err := s.space.refusal(); err != nil {
				return nil, err
			}
		}
		return s.registry.Apply(r.Context(), text, opts)
	})
}

func (s *server) postDelete(r *http.Request) (any, error) {
	return s.manifest(r, func(text []byte, opts api.ManifestOptions) (*api.ApplyResult, error) {
		return s.registry.DeleteManifest(r.Context(), text, opts)
	})
}
