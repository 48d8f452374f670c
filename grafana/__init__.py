"""What an operator looks at: dashboards as code, and the JSON that Grafana takes."""
