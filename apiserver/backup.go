package apiserver

import (
	"io"
	"net/http"
)

// getBackup streams a snapshot of the store. What it holds, the authority's key too, is all
// that an operator has, so it leaves a line in the audit trail although it changes nothing.
func (s *server) getBackup(w http.ResponseWriter, r *http.Request) {
	snapshot, err := s.store.Backup(r.Context())
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer snapshot.Close()
	s.log.Info("audit", "user", callerOf(r), "action", "read", "object", "backup")
	w.Header().Set("Content-Type", "application/octet-stream")
	if _, err := io.Copy(w, snapshot); err != nil {
		if r.Context().Err() == nil {
			s.log.Warn("a backup ended before it was complete", "user", callerOf(r), "err", err)
		}
		panic(http.ErrAbortHandler) // the status line is sent: only a broken connection says it
	}
}
