package mds

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// hcLog hands the log of the raft library to slog.
type hcLog struct {
	out  *slog.Logger
	name string
	args []any // pairs that every line gets
}

var _ hclog.Logger = (*hcLog)(nil)

func newHCLog(out *slog.Logger) *hcLog { return &hcLog{out: out, name: "raft"} }

// level says how important a level of the library is to us: its Info is chatter about elections.
func (l *hcLog) level(level hclog.Level) slog.Level {
	switch {
	case level >= hclog.Error:
		return slog.LevelError
	case level == hclog.Warn:
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// Log implements hclog.Logger.
func (l *hcLog) Log(level hclog.Level, msg string, args ...any) {
	ctx, to := context.Background(), l.level(level)
	if !l.out.Enabled(ctx, to) {
		return
	}
	attrs := []slog.Attr{slog.String("part", l.name)}
	all := append(l.args[:len(l.args):len(l.args)], args...)
	for i := 0; i+1 < len(all); i += 2 {
		v := all[i+1]
		if f, ok := v.(hclog.Format); ok && len(f) > 0 {
			v = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
		attrs = append(attrs, slog.Any(fmt.Sprint(all[i]), v))
	}
	l.out.LogAttrs(ctx, to, msg, attrs...)
}

// Trace implements hclog.Logger.
func (l *hcLog) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }

// Debug implements hclog.Logger.
func (l *hcLog) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }

// Info implements hclog.Logger.
func (l *hcLog) Info(msg string, args ...any) { l.Log(hclog.Info, msg, args...) }

// Warn implements hclog.Logger.
func (l *hcLog) Warn(msg string, args ...any) { l.Log(hclog.Warn, msg, args...) }

// Error implements hclog.Logger.
func (l *hcLog) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *hcLog) enabled(level hclog.Level) bool {
	return l.out.Enabled(context.Background(), l.level(level))
}

// IsTrace implements hclog.Logger.
func (l *hcLog) IsTrace() bool { return false }

// IsDebug implements hclog.Logger.
func (l *hcLog) IsDebug() bool { return l.enabled(hclog.Debug) }

// IsInfo implements hclog.Logger.
func (l *hcLog) IsInfo() bool { return l.enabled(hclog.Info) }

// IsWarn implements hclog.Logger.
func (l *hcLog) IsWarn() bool { return l.enabled(hclog.Warn) }

// IsError implements hclog.Logger.
func (l *hcLog) IsError() bool { return l.enabled(hclog.Error) }

// ImpliedArgs implements hclog.Logger.
func (l *hcLog) ImpliedArgs() []any { return l.args }

// With implements hclog.Logger.
func (l *hcLog) With(args ...any) hclog.Logger {
	return &hcLog{out: l.out, name: l.name,
		args: append(l.args[:len(l.args):len(l.args)], args...)}
}

// Name implements hclog.Logger.
func (l *hcLog) Name() string { return l.name }

// Named implements hclog.Logger.
func (l *hcLog) Named(name string) hclog.Logger { return l.ResetNamed(l.name + "." + name) }

// ResetNamed implements hclog.Logger.
func (l *hcLog) ResetNamed(name string) hclog.Logger {
	return &hcLog{out: l.out, name: name, args: l.args}
}

// SetLevel implements hclog.Logger; the level is slog's.
func (l *hcLog) SetLevel(hclog.Level) {}

// GetLevel implements hclog.Logger.
func (l *hcLog) GetLevel() hclog.Level {
	if l.IsDebug() {
		return hclog.Debug
	}
	return hclog.Warn
}

// StandardLogger implements hclog.Logger.
func (l *hcLog) StandardLogger(o *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(o), "", 0)
}

// StandardWriter implements hclog.Logger.
func (l *hcLog) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return slog.NewLogLogger(l.out.Handler(), slog.LevelDebug).Writer()
}
