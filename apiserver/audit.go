package apiserver

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/admission"
)

// The audit trail: a line in the log for each object, node and peer that somebody
// changed, with the user of the certificate they came with. What was refused changed
// nothing and is not logged, nor is what only reads. A change that failed midway may
// have been made, so it is logged as unconfirmed.

// changePatience bounds a change: nobody else ends it.
const changePatience = 2 * time.Minute

// auditObject logs the change of an object.
func (s *server) auditObject(user string, o api.AppliedObject) {
	s.log.Info("audit", "user", user, "action", string(o.Action), "kind", o.Kind, "object", strings.TrimPrefix(o.Namespace+"/"+o.Name, "/"))
}

// audited logs every other change by its request. Agents renew their bundles all the
// time, which is no operator's act.
//
// A change goes on when its caller hangs up. Otherwise it could reach the store and
// leave no line here: callers could keep out of the trail.
func (s *server) audited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead || r.URL.Path == admission.Path {
			next.ServeHTTP(w, r)
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), changePatience)
		defer cancel()
		on := new(passed)
		r = r.WithContext(context.WithValue(ctx, passedKey{}, on))
		answer := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(answer, r)
		what, told := strings.CutPrefix(r.URL.Path, "/v1/")
		if added := r.PathValue(api.Added); added != "" {
			what += "/" + added
		}
		objects := what == "apply" || what == "delete" || strings.HasPrefix(what, "objects/")
		user := callerOf(r)
		if user == "" {
			user = "a token of Kubernetes"
		}
		if r.URL.Path == joinPath {
			user = "a cluster with a Peer's token"
		}
		action := map[string]string{http.MethodPost: "posted", http.MethodDelete: "deleted"}[r.Method]
		switch {
		case on.on: // it is in the trail of the server that leads
		case !told || r.URL.Query().Get("dry-run") == "true":
		case answer.status >= 500 && answer.status != http.StatusInsufficientStorage:
			s.log.Warn("audit", "user", user, "action", action, "object", what, "result", "unconfirmed", "status", answer.status)
		case answer.status >= 300 || objects:
		default:
			level := slog.LevelInfo
			if isAgent(callerOf(r)) {
				level = slog.LevelDebug
			}
			s.log.Log(ctx, level, "audit", "user", user, "action", action, "object", what)
		}
	})
}
