"""How politely and how far videos are fetched from the web: the section ``ingest`` of the policy file."""

from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class HostRules(BaseModel):
    """What one host is asked for at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    concurrency: int = Field(4, ge=1, description="Requests under way at the same time.")
    requests_per_s: float = Field(5.0, gt=0, description="Requests begun a second, on average.")


class IngestRules(BaseModel):
    """Limits of a fetch and manners towards hosts; times in seconds, sizes in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    concurrency: int = Field(32, ge=1, description="Requests under way at the same time, all hosts together.")
    per_host: HostRules = Field(HostRules(), description="For each host that `hosts` does not name.")
    hosts: dict[str, HostRules] = Field(default_factory=dict, description="By host name, for hosts of your own, say.")
    robots: Literal["follow", "ignore"] = Field("follow", description="Whether robots.txt is asked for and followed.")
    max_crawl_delay_s: float = Field(120, gt=0, description="A host that asks for a longer delay is left alone.")
    user_agent: str = Field("facereel", min_length=1, description="How the fetcher names itself.")
    attempts: int = Field(4, ge=1, description="Tries of one address in a run, where another try may help.")
    backoff_s: float = Field(2.0, ge=0, description="Wait before the second try; doubles with each.")
    max_retry_after_s: float = Field(600, ge=0, description="A host that asks to wait longer is left for another run.")
    max_bytes: int = Field(4 << 30, gt=0, description="A larger file is refused.")
    max_s: float = Field(3600, gt=0, description="A file that takes longer is given up; the next try goes on with it.")
    min_bytes_per_s: float = Field(1024, ge=0, description="A slower file, over half a minute, is given up likewise.")
    connect_timeout_s: float = Field(10, gt=0)
    read_timeout_s: float = Field(30, gt=0, description="Longest silence of a host.")
    max_redirects: int = Field(5, ge=0)
    allow_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        (), description="Networks that may be fetched from although they are private: 10.1.0.0/16, say."
    )

    def of_host(self, host: str) -> HostRules:
        """What holds for the host."""
        return self.hosts.get(host, self.per_host)
