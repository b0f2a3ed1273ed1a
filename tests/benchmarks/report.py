def tables(part, cell):
    from .figures import rows_of, rate, beside
    if part in ("train","decode","overhead"):
        for row in cell["rows"]:
            if "failed" in row: yield f"{row['name']}: {row['failed']}"; continue
            yield row["name"].ljust(24)+str(row.get("threads","")).ljust(6)+"  ".join(f"{k} {rate(row,k):,.4g} ({min(v):,.4g} to {max(v):,.4g})" for k,v in row["rates"].items())+f"  {row['peak_bytes']/2**20:.0f} MiB  {row['cores']}"
    else: yield str(cell)
