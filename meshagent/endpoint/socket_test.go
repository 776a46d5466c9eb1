package endpoint_test

import (
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/meshagent/endpoint"
)

// The socket speaks of all this, in the form that a CNI plugin will use.
func TestRequestsOverTheSocket(t *testing.T) {
	m := newMachine(t)
	l := m.start()
	mux := http.NewServeMux()
	endpoint.Serve(mux, l)
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: mux}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	defer func() { _ = server.Close(); <-done }()
	client := api.NewUnixClient(socket)
	defer client.Close()
	remote := client.Endpoints()

	ctx := t.Context()
	if _, err := remote.Look(ctx, web); status(err) != http.StatusNotFound {
		t.Errorf("look before: %v", err)
	}
	added, err := remote.Add(ctx, web)
	if err != nil {
		t.Fatal(err)
	}
	if want := l.add(web); !reflect.DeepEqual(added, want) {
		t.Errorf("added %+v, want %+v", added, want)
	}
	if seen, err := remote.Look(ctx, web); err != nil || !reflect.DeepEqual(seen, added) {
		t.Errorf("looked at %+v, %v", seen, err)
	}
	if err := remote.Remove(ctx, web); err != nil {
		t.Error(err)
	}
	l.empty("removed")
	if _, err := remote.Add(ctx, api.EndpointRequest{Namespace: "shop", Name: "../../etc"}); status(err) != http.StatusUnprocessableEntity {
		t.Errorf("a name that is none: %v", err)
	}
	m.onStep(func(string, string) error { return errors.New("no memory") })
	if _, err := remote.Add(ctx, web); status(err) != http.StatusInternalServerError || !strings.Contains(err.Error(), "no memory") {
		t.Errorf("a kernel that refuses: %v", err)
	}
}

func status(err error) int {
	var refusal *api.Error
	if errors.As(err, &refusal) {
		return refusal.Status
	}
	return 0
}
