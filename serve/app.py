"""What ``serve run serve.app:app`` starts: the service by the settings of its environment."""

from infra.settings import load_settings
from serve.deployments import application

app = application(load_settings())
