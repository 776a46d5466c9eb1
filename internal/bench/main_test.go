package main

import (
	"bufio"
	"context"
	"io"
	"strings"
	"testing"
)

// A command ends with all that it started, and not only when that ends by itself.
func TestWhatACommandStartedEndsWithIt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := command(ctx, "sh", "-c", "(sleep 15; echo left) & echo begun; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "begun\n" {
		t.Fatalf("%q, %v", line, err)
	}
	cancel()
	rest, err := io.ReadAll(lines) // until nobody has it open
	if err != nil || strings.Contains(string(rest), "left") {
		t.Errorf("what was started went on: %q, %v", rest, err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the command ended by itself")
	}
}

// Nothing else is measured once the run is to end.
func TestARunThatIsToEndGoesNoFurther(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out strings.Builder
	err := run(ctx, &out)
	if err == nil || strings.Contains(err.Error(), steps[1].name+":") || out.Len() > 0 {
		t.Errorf("%v\n%s", err, out.String())
	}
}
