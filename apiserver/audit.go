package apiserver

import (
	"log/slog"
	"net/http"
	"strings"

	"github.com/weft-mesh/weft/apiserver/api"
	"github.com/weft-mesh/weft/apiserver/authority"
)

// The audit trail: a line in the log for each object, node and peer that somebody
// changed, with the user of the certificate they came with. What was refused
// changed nothing, and what only looked is not logged.

// auditObjects logs what became of a manifest's objects.
func (s *server) auditObjects(r *http.Request, result *api.ApplyResult) {
	if result.DryRun {
		return
	}
	for _, o := range result.Objects {
		switch o.Action {
		case api.Created, api.Configured, api.Deleted:
			s.log.Info("audit", "user", callerOf(r), "action", string(o.Action), "kind", o.Kind, "object", strings.TrimPrefix(o.Namespace+"/"+o.Name, "/"))
		}
	}
}

// audited logs every other change, by its request. Agents renew their bundles
// all the time; that is no operator's act.
func (s *server) audited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			next.ServeHTTP(w, r)
			return
		}
		answer := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(answer, r)
		what, told := strings.CutPrefix(r.URL.Path, "/v1/")
		if answer.status >= 300 || !told || what == "apply" || what == "delete" || strings.HasPrefix(what, "objects/") {
			return
		}
		level := slog.LevelInfo
		if _, agent := authority.ParseAgentUser(callerOf(r)); agent {
			level = slog.LevelDebug
		}
		action := map[string]string{http.MethodPost: "posted", http.MethodDelete: "deleted"}[r.Method]
		s.log.Log(r.Context(), level, "audit", "user", callerOf(r), "action", action, "object", what)
	})
}
