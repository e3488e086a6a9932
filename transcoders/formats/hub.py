"""Uploading an export to the Hugging Face Hub, as the user who is logged in."""

from pathlib import Path

from transcoders.core.errors import UserError
from transcoders.formats.locate import connection_broke


def upload(folder: Path, repo: str) -> str:
    """Create the repository if there is none, upload the folder in one commit, return its address.

    Raises:
        UserError: nobody is logged in, the user may not write there, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi()
    try:
        if "/" not in repo:
            repo = f"{api.whoami(token=True)['name']}/{repo}"
        api.create_repo(repo, exist_ok=True, token=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export", token=True).commit_url)
    except LocalTokenNotFoundError:
        raise UserError("--to hub: nobody is logged in; run `hf auth login` (or set HF_TOKEN)") from None
    except HFValidationError as error:
        raise UserError(f"--repo {repo}: {' '.join(str(error).split())}") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        remedy = (
            "log in with `hf auth login`, with a token that may write" if status in (401, 403) else "try again later"
        )
        raise UserError(f"--to hub: the Hub refused {repo} (status {status}); {remedy}") from None
    except Exception as error:
        if not connection_broke(error):
            raise
        raise UserError(
            f"--to hub: {repo} could not be uploaded ({type(error).__name__}); is there a connection?"
        ) from None
