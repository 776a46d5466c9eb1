package endpoint

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"github.com/weft-mesh/weft/api"
)

// Serve adds the requests to a mux.
func Serve(mux *http.ServeMux, e api.EndpointRequests) {
	mux.HandleFunc("POST "+api.EndpointAddPath, serve(api.ReadEndpointRequest, e.Add))
	mux.HandleFunc("POST "+api.EndpointLookPath, serve(api.ReadEndpointRequest, e.Look))
	mux.HandleFunc("POST "+api.EndpointRemovePath, serve(api.ReadEndpointRequest, empty(e.Remove)))
	mux.HandleFunc("POST "+api.EndpointRetainPath, serve(api.ReadEndpointRetention, empty(e.Retain)))
}

// empty is a request with nothing to answer.
func empty[R any](do func(context.Context, R) error) func(context.Context, R) (struct{}, error) {
	return func(ctx context.Context, r R) (struct{}, error) { return struct{}{}, do(ctx, r) }
}

func serve[R, T any](read func(io.Reader) (R, error), do func(context.Context, R) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		var answer any
		req, err := read(r.Body)
		if err == nil {
			answer, err = do(r.Context(), req)
		}
		if err != nil {
			refusal := refusal(err)
			w.WriteHeader(refusal.Status)
			answer = refusal
		}
		_ = json.NewEncoder(w).Encode(answer) // fails only if the reader is gone
	}
}

// refusal is what the requester is told: whether repeating the request helps is its status.
func refusal(err error) *api.Error {
	var known *api.Error
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(err, ErrNoAddress), errors.Is(err, ErrResting):
		return api.Refuse(http.StatusServiceUnavailable, "", "%v", err)
	default:
		return api.Refuse(http.StatusInternalServerError, "", "%v", err)
	}
}
