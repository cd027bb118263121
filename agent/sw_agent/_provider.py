from opentelemetry import trace
def get_tracer(scope): return trace.get_tracer(scope)
