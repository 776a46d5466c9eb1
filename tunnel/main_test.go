package tunnel_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/weft-mesh/weft/tunnel"
)

// serveVariable turns this test binary into a `weft tunnel` process: its value
// is the configuration.
const serveVariable = "WEFT_TEST_TUNNEL_SERVE"

func TestMain(m *testing.M) {
	if text, ok := os.LookupEnv(serveVariable); ok {
		if err := serveProcess(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func serveProcess(text string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var cfg tunnel.ServeConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	return tunnel.Serve(ctx, cfg)
}
