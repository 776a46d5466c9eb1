package meshagent

import (
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
)

func TestTheAgentsAnswersAreForScriptsAndPeople(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, east, _, _ := raise(t)
		ask := func(path string) string {
			w := httptest.NewRecorder()
			east.agent.handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			return w.Body.String()
		}
		if got := ask("/v1/status"); !strings.Contains(got, `"name":"clusters","rows":2,"pending":0,"errors":0`) {
			t.Errorf("status: %s", got)
		}
		if got := ask("/v1/tables/nope"); !strings.Contains(got, "choose from clusters, endpoints, ") {
			t.Errorf("a table that is not there: %s", got)
		}
		if got := ask("/debug/pprof/allocs?debug=1"); !strings.Contains(got, "heap profile: ") {
			t.Errorf("a profile: %.200s", got)
		}
	})
}
