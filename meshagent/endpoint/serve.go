package endpoint

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/weft-mesh/weft/api"
)

// Serve adds the requests to a mux.
func Serve(mux *http.ServeMux, e api.EndpointRequests) {
	mux.HandleFunc("POST "+api.EndpointAddPath, serve(e.Add))
	mux.HandleFunc("POST "+api.EndpointLookPath, serve(e.Look))
	mux.HandleFunc("POST "+api.EndpointRemovePath, serve(func(ctx context.Context, r api.EndpointRequest) (struct{}, error) {
		return struct{}{}, e.Remove(ctx, r)
	}))
}

func serve[T any](do func(context.Context, api.EndpointRequest) (T, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		var answer any
		req, err := api.ReadEndpointRequest(r.Body)
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
