package kubernetes

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	api "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/weft-mesh/weft/apiserver/mcs"
)

// asked are the requests that an API server got: the method and path, and the body.
type asked struct{ what, body string }

// kubernetesThat answers each request with a status, and an empty list or object.
func kubernetesThat(t *testing.T, status func(path string) int) (*ClusterSet, *[]asked) {
	var all []asked
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		all = append(all, asked{r.Method + " " + r.URL.RequestURI(), string(body)})
		w.Header().Set("Content-Type", "application/json")
		code := status(r.URL.Path)
		w.WriteHeader(code)
		switch {
		case code != http.StatusOK:
			_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Code: int32(code), Reason: metav1.StatusReason(map[int]string{404: "NotFound", 403: "Forbidden"}[code])})
		case r.Method == http.MethodGet:
			_, _ = io.WriteString(w, `{"apiVersion":"multicluster.x-k8s.io/v1beta1","kind":"ServiceImportList","metadata":{},"items":[{"apiVersion":"multicluster.x-k8s.io/v1beta1","kind":"ServiceImport","metadata":{"namespace":"shop","name":"web"}}]}`)
		default:
			_, _ = w.Write(body)
			if len(body) == 0 {
				_, _ = io.WriteString(w, `{"apiVersion":"v1","kind":"Status","status":"Success"}`)
			}
		}
	}))
	t.Cleanup(s.Close)
	return &ClusterSet{Access: func() (*rest.Config, error) { return &rest.Config{Host: s.URL}, nil }}, &all
}

func TestClusterSetWrites(t *testing.T) {
	c, all := kubernetesThat(t, func(string) int { return http.StatusOK })
	svc := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "derived-x", Labels: map[string]string{"a": "b"}}}
	i := &api.ServiceImport{
		TypeMeta: metav1.TypeMeta{APIVersion: api.GroupVersion.String(), Kind: "ServiceImport"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"},
		Spec: api.ServiceImportSpec{Type: api.Headless, Ports: []api.ServicePort{{Port: 80}}}, Status: api.ServiceImportStatus{Clusters: []api.ClusterStatus{{Cluster: "west"}}},
	}
	names, err := c.Imports(t.Context())
	if err != nil || !slices.Equal(names, []mcs.Name{{Namespace: "shop", Name: "web"}}) {
		t.Errorf("imports %v %v", names, err)
	}
	for _, err := range []error{
		c.PutService(t.Context(), svc), c.DeleteService(t.Context(), "shop", "derived-x"), c.PutImport(t.Context(), i), c.DeleteImport(t.Context(), "shop", "web"),
		c.PutExportStatus(t.Context(), "shop", "web", api.ServiceExportStatus{}),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	const group, how = "/apis/multicluster.x-k8s.io/v1beta1/", "?fieldManager=weft-mcs&force=true"
	want := []string{
		"GET " + group + "serviceimports?labelSelector=app.kubernetes.io%2Fmanaged-by%3Dweft",
		"PATCH /api/v1/namespaces/shop/services/derived-x" + how,
		"DELETE /api/v1/namespaces/shop/services/derived-x",
		"PATCH " + group + "namespaces/shop/serviceimports/web" + how,
		"PATCH " + group + "namespaces/shop/serviceimports/web/status" + how,
		"DELETE " + group + "namespaces/shop/serviceimports/web",
		"PATCH " + group + "namespaces/shop/serviceexports/web/status" + how,
	}
	var got []string
	for _, a := range *all {
		got = append(got, a.what)
	}
	if !slices.Equal(got, want) {
		t.Errorf("asked for\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if body := (*all)[1].body; !strings.Contains(body, `"labels":{"a":"b","app.kubernetes.io/managed-by":"weft"}`) || strings.Contains(body, "status") {
		t.Errorf("service %s", body)
	}
	if body := (*all)[3].body; strings.Contains(body, `"status"`) || !strings.Contains(body, `"type":"Headless"`) {
		t.Errorf("import %s", body)
	}
	if body := (*all)[4].body; strings.Contains(body, `"spec"`) || !strings.Contains(body, `"cluster":"west"`) {
		t.Errorf("its status %s", body)
	}
}

// Without the definitions, services of the cluster set work all the same.
func TestClusterSetWithoutDefinitions(t *testing.T) {
	c, _ := kubernetesThat(t, func(string) int { return http.StatusNotFound })
	if names, err := c.Imports(t.Context()); err != nil || len(names) > 0 {
		t.Errorf("imports %v %v", names, err)
	}
	if err := c.PutImport(t.Context(), &api.ServiceImport{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}); !errors.Is(err, mcs.ErrUndefined) {
		t.Errorf("put an import: %v", err)
	}
	for _, err := range []error{c.DeleteImport(t.Context(), "shop", "web"), c.DeleteService(t.Context(), "shop", "web"), c.PutExportStatus(t.Context(), "shop", "web", api.ServiceExportStatus{})} {
		if err != nil {
			t.Error(err)
		}
	}
	refused, _ := kubernetesThat(t, func(string) int { return http.StatusForbidden })
	if err := refused.PutService(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "x"}}); err == nil {
		t.Error("a service that may not be written was")
	}
}
